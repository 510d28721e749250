# Sourced by the other scripts: puts the project's environment first on the path.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${VENV:-.venv}
if [ -x "$VENV/bin/python" ]; then
    PATH="$(cd "$VENV/bin" && pwd):$PATH"
fi
export PATH
export PYTHONPATH="$PWD/python${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
