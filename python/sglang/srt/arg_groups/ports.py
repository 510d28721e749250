"""Where the processes of one server meet: unix sockets in a private folder, and one TCP port for the process group."""

from __future__ import annotations

import dataclasses
import shutil
import socket
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

# The kernel's limit on a unix socket path, less room for the longest name and the final zero.
_MAX_FOLDER_CHARS = 107 - len("/scheduler_input.sock") - 1


@dataclasses.dataclass(frozen=True)
class PortArgs:
    """Addresses of one server. The folder belongs to the process that made it, which calls `cleanup`."""

    socket_dir: str  # mode 0700: nobody else may connect
    tokenizer_ipc_name: str
    scheduler_input_ipc_name: str
    detokenizer_ipc_name: str
    rpc_ipc_name: str
    metrics_ipc_name: str
    nccl_port: int

    @staticmethod
    def init_new(server_args: ServerArgs) -> PortArgs:
        """Make a fresh private folder and choose a free port unless `nccl_port` is set."""
        folder = _private_folder()

        def address(name: str) -> str:
            return f"ipc://{folder}/{name}.sock"

        return PortArgs(
            socket_dir=folder,
            tokenizer_ipc_name=address("tokenizer"),
            scheduler_input_ipc_name=address("scheduler_input"),
            detokenizer_ipc_name=address("detokenizer"),
            rpc_ipc_name=address("rpc"),
            metrics_ipc_name=address("metrics"),
            nccl_port=server_args.nccl_port or find_free_port(),
        )

    def cleanup(self) -> None:
        """Remove the folder; safe to call twice."""
        shutil.rmtree(self.socket_dir, ignore_errors=True)


def find_free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nothing listens on right now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def _private_folder() -> str:
    folder = tempfile.mkdtemp(prefix="sglang-")  # mode 0700
    if len(folder) <= _MAX_FOLDER_CHARS:
        return folder
    shutil.rmtree(folder)
    return tempfile.mkdtemp(prefix="sglang-", dir="/tmp")
