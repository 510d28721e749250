"""Every environment variable that the project knows, with its type and default.

Most are read here; some by the libraries underneath (`_read_by_others`), some by nobody yet (`_without_effect`), which
`warn_of_variables` says at start. Use `envs.NAME.get()`. Variables are for deployment plumbing and debugging; what a user tunes is a flag.
Parsing is strict: a value that does not parse raises `ConfigError` naming the variable and what is allowed.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Generic, TypeVar

from sglang.srt.utils.errors import ConfigError

logger = logging.getLogger(__name__)
T = TypeVar("T")
F = TypeVar("F", bound="EnvField")
N = TypeVar("N", int, float)

_TRUE_WORDS = ("true", "1", "yes", "y")
_FALSE_WORDS = ("false", "0", "no", "n")


# Needed while the class bodies below run.
def _range_words(minimum: float | None, maximum: float | None) -> str:
    if minimum is not None and maximum is not None:
        return f" from {minimum} to {maximum}"
    if minimum is not None:
        return f" of at least {minimum}"
    return ""


def _within(value: N, minimum: float | None, maximum: float | None) -> N:
    if (minimum is not None and value < minimum) or (maximum is not None and value > maximum):
        raise ValueError(value)
    return value


class EnvField(Generic[T]):
    """One variable. The process environment is the only store, so that children inherit what `set` wrote.

    A variable that is unset, or set to nothing for a type that has no empty value, yields the default.
    """

    allowed = "any text"
    has_effect = True
    is_read_by_others = False

    def __init__(self, default: T, help: str = "") -> None:
        self.default = default
        self.help = help
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def get(self) -> T:
        """The parsed value, or the default. Raises ConfigError for a value that does not parse."""
        raw = os.environ.get(self.name)
        if raw is None or (raw.strip() == "" and not isinstance(self.default, str)):
            return self.default
        try:
            return self._parse(raw)
        except ValueError as error:
            raise ConfigError(
                f"environment variable {self.name}={raw!r} is invalid; allowed: {self.allowed}"
            ) from error

    def set(self, value: T | None) -> None:
        """Write the variable for this process and its future children; None removes it."""
        if value is None:
            self.clear()
        else:
            os.environ[self.name] = self._format(value)

    def is_set(self) -> bool:
        return self.name in os.environ

    def clear(self) -> None:
        os.environ.pop(self.name, None)

    @contextlib.contextmanager
    def override(self, value: T | None) -> Iterator[None]:
        """Set the variable inside a `with` block and restore what was there before."""
        before = os.environ.get(self.name)
        self.set(value)
        try:
            yield
        finally:
            self.clear()
            if before is not None:
                os.environ[self.name] = before

    def __bool__(self) -> bool:
        raise RuntimeError(f"envs.{self.name} is a field, not a value; use envs.{self.name}.get()")

    def _parse(self, raw: str) -> T:
        raise NotImplementedError

    def _format(self, value: T) -> str:
        return str(value)


class EnvStr(EnvField[str]):
    """Free text."""

    def _parse(self, raw: str) -> str:
        return raw


class EnvOptionalStr(EnvField["str | None"]):
    """Free text; unset or empty is None."""

    def _parse(self, raw: str) -> str | None:
        return raw


class EnvBool(EnvField[bool]):
    allowed = f"{', '.join(_TRUE_WORDS)} or {', '.join(_FALSE_WORDS)} (any case)"

    def _parse(self, raw: str) -> bool:
        word = raw.strip().lower()
        if word not in _TRUE_WORDS + _FALSE_WORDS:
            raise ValueError(word)
        return word in _TRUE_WORDS

    def _format(self, value: bool) -> str:
        return "true" if value else "false"


class EnvInt(EnvField[int]):
    """A whole number, optionally bounded on both sides."""

    def __init__(
        self,
        default: int,
        help: str = "",
        *,
        minimum: int | None = None,
        maximum: int | None = None,
    ) -> None:
        super().__init__(default, help)
        self.minimum, self.maximum = minimum, maximum
        self.allowed = "a whole number" + _range_words(minimum, maximum)

    def _parse(self, raw: str) -> int:
        return _within(int(raw), self.minimum, self.maximum)


class EnvOptionalInt(EnvField["int | None"]):
    """A whole number with a lower bound; unset is None."""

    def __init__(self, default: int | None, help: str = "", *, minimum: int) -> None:
        super().__init__(default, help)
        self.minimum = minimum
        self.allowed = "a whole number" + _range_words(minimum, None)

    def _parse(self, raw: str) -> int | None:
        return _within(int(raw), self.minimum, None)


class EnvFloat(EnvField[float]):
    """A finite number, optionally bounded on both sides."""

    def __init__(
        self,
        default: float,
        help: str = "",
        *,
        minimum: float | None = None,
        maximum: float | None = None,
    ) -> None:
        super().__init__(default, help)
        self.minimum, self.maximum = minimum, maximum
        self.allowed = "a finite number" + _range_words(minimum, maximum)

    def _parse(self, raw: str) -> float:
        value = float(raw)
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError(raw)
        return _within(value, self.minimum, self.maximum)


class EnvTuple(EnvField["tuple[str, ...]"]):
    """Comma separated words; blanks around them and empty ones are dropped."""

    allowed = "words separated by commas"

    def _parse(self, raw: str) -> tuple[str, ...]:
        return tuple(word.strip() for word in raw.split(",") if word.strip())

    def _format(self, value: tuple[str, ...] | str) -> str:
        # One word is the common case, and people write it as a plain string.
        return value if isinstance(value, str) else ",".join(value)


def _without_effect(field: F) -> F:
    """Known, so that nobody takes it for a typing error, but read by nobody yet. Take this off when you read it."""
    field.has_effect = False
    return field


def _read_by_others(field: F) -> F:
    """Read by a library, or by tests outside the package."""
    field.is_read_by_others = True
    return field


class Envs:
    """The variables, by topic. Assigning to one is an error: use `.set()`."""

    # Plug-ins
    SGLANG_EXTERNAL_MODEL_PACKAGE = EnvTuple(
        (), "packages whose EntryClass override the built-in models"
    )
    SGLANG_EXTERNAL_MM_MODEL_ARCH = EnvTuple((), "architectures that join the multimodal list")
    SGLANG_EXTERNAL_MM_PROCESSOR_PACKAGE = EnvTuple((), "packages with multimodal processors")
    SGLANG_DISABLED_MODEL_ARCHS = EnvTuple((), "model module names that are not imported")

    # Models and caches on disk
    HF_TOKEN = _read_by_others(EnvOptionalStr(None, "token for the Hugging Face hub"))
    HF_HOME = _read_by_others(EnvOptionalStr(None, "folder of the Hugging Face cache"))
    HF_HUB_OFFLINE = EnvBool(False, "never reach the hub")
    SGLANG_USE_MODELSCOPE = _without_effect(
        EnvBool(False, "download from ModelScope instead of the hub")
    )
    SGLANG_CACHE_DIR = _without_effect(
        EnvStr("~/.cache/sglang", "folder for what the project caches on disk")
    )
    SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN = EnvBool(
        False, "permit --context-length above the model's own"
    )
    SGLANG_EMBEDDINGS_SPARSE_HEAD = _without_effect(
        EnvOptionalStr(None, "file of a sparse embedding head")
    )

    # Devices and kernels
    CUDA_VISIBLE_DEVICES = EnvOptionalStr(None, "GPUs that the process may see")
    SGLANG_IS_FLASHINFER_AVAILABLE = EnvBool(True, "false hides flashinfer")
    SGLANG_SKIP_SGL_KERNEL_VERSION_CHECK = _without_effect(
        EnvBool(False, "do not check the kernel package's version")
    )
    SGLANG_ENABLE_DETERMINISTIC_INFERENCE = _without_effect(
        EnvBool(False, "set by the flag of the same name")
    )
    SGLANG_ENABLE_DEPENDENT_LAUNCH = EnvBool(
        True, "on Hopper GPUs and newer, kernels begin while the one before still runs"
    )
    OMP_NUM_THREADS = EnvOptionalStr(
        None, "threads of a CPU's products; unset: a rank's share of the cores"
    )
    SGLANG_CPU_OMP_THREADS_BIND = EnvOptionalStr(
        None, "cores of each rank on a CPU, ranks split by |: 0-3|4-7"
    )
    SGLANG_FP8_WEIGHT_SCALES = EnvStr(
        "channel", "scales of weights that --quantization fp8 rounds: channel or tensor"
    )
    SGLANG_MAMBA_CONV_DTYPE = _without_effect(
        EnvStr("bfloat16", "dtype of the convolution state of hybrid models")
    )
    SGLANG_MAMBA_SSM_DTYPE = _without_effect(
        EnvOptionalStr(None, "dtype of the recurrent state of hybrid models")
    )

    # Profiler
    SGLANG_TORCH_PROFILER_DIR = EnvOptionalStr(
        None, "folder for traces; unset: the temporary folder"
    )
    SGLANG_PROFILE_WITH_STACK = EnvBool(True, "record Python stacks in traces")
    SGLANG_PROFILE_RECORD_SHAPES = EnvBool(True, "record shapes in traces")

    # Health, timeouts (seconds)
    SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION = EnvBool(True, "/health generates one token")
    SGLANG_HEALTH_CHECK_TIMEOUT = EnvFloat(20.0, "patience of /health", minimum=0)
    SGLANG_WARMUP_TIMEOUT = EnvFloat(-1.0, "limit of the warm-up request; negative: none")
    SGLANG_REQ_WAITING_TIMEOUT = EnvFloat(-1.0, "limit in the queue; negative: none")
    SGLANG_REQ_RUNNING_TIMEOUT = EnvFloat(-1.0, "limit while running; negative: none")
    SGLANG_REQUEST_STATE_WAIT_TIMEOUT = EnvFloat(4.0, "interval of the disconnect check", minimum=0)

    # Admission of new requests: how many future tokens a running request is charged for
    SGLANG_INIT_NEW_TOKEN_RATIO = EnvFloat(
        0.7, "share of max_new_tokens reserved", minimum=0, maximum=1
    )
    SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR = EnvFloat(0.14, "floor of the share", minimum=0, maximum=1)
    SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS = EnvInt(600, "steps from the share to its floor", minimum=1)
    SGLANG_RETRACT_DECODE_STEPS = EnvInt(20, "decode steps kept free after a retraction", minimum=0)
    SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION = EnvInt(
        4096, "cap of one reservation, tokens", minimum=1
    )
    SGLANG_DETOKENIZER_MAX_STATES = _without_effect(
        EnvInt(65536, "decoding states kept at most", minimum=1)
    )

    # Output
    SGLANG_RETURN_ORIGINAL_LOGPROB = EnvBool(False, "output logprobs before temperature")
    SGLANG_TOOL_STRICT_LEVEL = _without_effect(
        EnvInt(0, "0 off, 1 function, 2 parameter", minimum=0, maximum=2)
    )
    SGLANG_FORWARD_UNKNOWN_TOOLS = _without_effect(
        EnvBool(False, "forward calls of tools that the request did not name")
    )
    SGLANG_GRAMMAR_POLL_INTERVAL = EnvFloat(
        0.005, "seconds between looks at the compiler", minimum=0.001
    )
    SGLANG_GRAMMAR_MAX_POLL_ITERATIONS = EnvInt(
        10000, "looks before a grammar times out", minimum=1
    )
    SGLANG_DISABLE_OUTLINES_DISK_CACHE = _without_effect(
        EnvBool(False, "keep outlines from caching on disk")
    )
    SGLANG_ENABLE_SPEC_V2 = _without_effect(EnvBool(False, "overlapped speculation"))

    # Logging and metrics
    SGLANG_LOG_REQUEST_HEADERS = _without_effect(EnvTuple((), "HTTP headers to log with a request"))
    SGLANG_LOG_REQUEST_EXCEEDED_MS = EnvInt(-1, "log only requests slower than this; negative: all")
    SGLANG_DISABLE_REQUEST_LOGGING = EnvBool(False, "never log request content")
    SGLANG_LOG_GC = _without_effect(EnvBool(False, "log garbage collections"))
    SGLANG_LOG_MS = EnvBool(False, "milliseconds in log times")
    SGLANG_LOGGING_CONFIG_PATH = _without_effect(
        EnvOptionalStr(None, "JSON file for logging.config.dictConfig")
    )
    PROMETHEUS_MULTIPROC_DIR = _read_by_others(EnvOptionalStr(None, "folder of the metrics files"))
    DISABLE_OPENAPI_DOC = EnvBool(False, "serve no /openapi.json")
    SGLANG_RECORD_STEP_TIME = _without_effect(EnvBool(False, "log the time of every step"))

    # Media
    SGLANG_VLM_CACHE_SIZE_MB = EnvInt(100, "cache of image embeddings, MiB", minimum=0)
    SGLANG_IMAGE_MAX_PIXELS = EnvInt(
        16384 * 28 * 28, "pixels of one resized image; unset: by model", minimum=1
    )
    SGLANG_MEDIA_MAX_PIXELS = EnvInt(
        2**26, "pixels of an image or frame that is decoded", minimum=1
    )
    SGLANG_MEDIA_MAX_MB = EnvInt(256, "size of one media file, MiB", minimum=1)
    SGLANG_MEDIA_ROOT = EnvOptionalStr(None, "folder whose files clients may name; unset: none")
    SGLANG_MEDIA_ALLOW_PRIVATE_HOSTS = EnvTuple(
        (), "hosts to fetch media from although their address is not public"
    )
    SGLANG_RESIZE_RESAMPLE = _without_effect(
        EnvOptionalStr(None, "resampling filter when images are resized")
    )
    VIDEO_MAX_PIXELS = EnvOptionalInt(None, "pixels of one video; unset: by model", minimum=1)
    REQUEST_TIMEOUT = EnvFloat(3.0, "seconds to fetch one media URL", minimum=0)
    SGLANG_IO_WORKERS = EnvInt(4, "threads that load media", minimum=1)
    SGLANG_CPU_WORKERS = EnvOptionalInt(
        None, "processes that prepare media; unset: by cores", minimum=1
    )
    SGLANG_MM_FEATURE_CACHE_MB = _without_effect(
        EnvInt(4096, "cache of media features, MiB", minimum=0)
    )
    SGLANG_MM_PRECOMPUTE_HASH = _without_effect(
        EnvBool(False, "hash media in the tokenizer process")
    )
    SGLANG_MM_SKIP_COMPUTE_HASH = EnvBool(False, "never hash media (no prefix cache over it)")
    SGLANG_ENABLE_MM_SPLITTING = EnvBool(False, "one item per image instead of one per request")
    SGLANG_USE_CUDA_IPC_TRANSPORT = _without_effect(
        EnvBool(False, "hand features over through CUDA IPC")
    )
    SGLANG_VIT_ENABLE_CUDA_GRAPH = _without_effect(EnvBool(False, "capture the vision tower"))

    # Several processes and machines
    SGLANG_SET_CPU_AFFINITY = _without_effect(EnvBool(False, "bind ranks to cores"))
    SGLANG_NUMA_BIND_V2 = _without_effect(EnvBool(True, "bind ranks to NUMA nodes"))
    SGLANG_PP_LAYER_PARTITION = EnvOptionalStr(None, "layers per pipeline stage, comma separated")
    SGLANG_ONE_VISIBLE_DEVICE_PER_PROCESS = _without_effect(
        EnvBool(False, "each rank sees its own GPU only")
    )
    SGLANG_BLOCK_NONZERO_RANK_CHILDREN = _without_effect(
        EnvBool(True, "other nodes wait for their children")
    )
    SGLANG_LOCAL_IP_NIC = _without_effect(
        EnvOptionalStr(None, "network interface that gives the local address")
    )
    SGLANG_HOST_IP = _without_effect(EnvOptionalStr(None, "local address, when it cannot be found"))
    SGLANG_PORT = _without_effect(EnvOptionalInt(None, "port of the process group", minimum=1))
    SGLANG_DISTRIBUTED_INIT_METHOD_OVERRIDE = EnvOptionalStr(
        None, "init method of the process group"
    )

    # Tools and tests
    OPENAI_API_KEY = EnvOptionalStr(None, "bearer key of the benchmark tools")
    API_KEY = EnvOptionalStr(None, "bearer key of the benchmark tools")
    ONLY_RUN = _read_by_others(EnvOptionalStr(None, "the one model that the generation tests run"))
    SGLANG_IS_IN_CI = EnvBool(False, "tests run in CI")
    SGLANG_TEST_TWINS = EnvStr("auto", "run tests of published models on twins: auto, 0 or 1")
    SGLANG_TEST_MAX_RETRY = EnvOptionalInt(
        None, "times that a failed test of CustomTestCase runs again; unset: none", minimum=0
    )
    SGLANG_TEST_RETRACT = EnvBool(False, "force retraction")
    SGLANG_TEST_RETRACT_INTERVAL = EnvInt(3, "steps between forced retractions", minimum=1)
    SGLANG_TEST_RETRACT_NO_PREFILL_BS = _without_effect(
        EnvInt(2**31, "no prefill above this batch size", minimum=0)
    )
    SGLANG_TEST_CRASH_AFTER_STREAM_OUTPUTS = _without_effect(
        EnvInt(0, "crash after this many outputs", minimum=0)
    )
    SGLANG_TEST_REQUEST_TIME_STATS = _without_effect(EnvBool(False, "check request time stamps"))
    SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE = EnvBool(
        True, "the server ends when the audit of an idle scheduler fails; false: it is logged"
    )
    SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY = EnvInt(
        0, "steps between audits while requests run; 0: none", minimum=0
    )
    SGLANG_SIMULATE_ACC_LEN = _without_effect(
        EnvFloat(-1.0, "simulated accept length; negative: off")
    )

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"envs.{name} cannot be assigned; use envs.{name}.set(value)")

    @staticmethod
    def fields() -> dict[str, EnvField]:
        """Name -> field, in order of declaration."""
        return {k: v for k, v in vars(Envs).items() if isinstance(v, EnvField)}

    @staticmethod
    def unknown_names() -> list[str]:
        """Variables of the process that start with `SGLANG_` and that are not declared: likely typing errors."""
        return sorted(k for k in os.environ if k.startswith("SGLANG_") and k not in Envs.fields())

    @staticmethod
    def idle_names() -> list[str]:
        """Variables of the process that are declared and change nothing yet."""
        return sorted(k for k, f in Envs.fields().items() if f.is_set() and not f.has_effect)


envs = Envs()


def warn_of_variables() -> None:
    """A warning for every variable of the process that its user may rely on in vain; for entry points, at start."""
    for name in envs.unknown_names():
        logger.warning("environment variable %s is set, but nothing reads it", name)
    for name in envs.idle_names():
        logger.warning("environment variable %s is known but has no effect yet", name)
