"""A scheduler that answers by script instead of by a model, in a thread or as the target of a spawned process.

The output of a request is its prompt, token by token, so that texts are easy to foresee. Some first tokens mean something else.
"""

from __future__ import annotations

import os
import threading
import time

import zmq

from sglang.srt.managers.io_struct import (
    AbortReq,
    BatchTokenOutput,
    Codec,
    FinishReason,
    FlushCacheReply,
    FlushCacheReq,
    InternalStateReply,
    InternalStateReq,
    LogprobChunk,
    ProfileReply,
    ProfileReq,
    SchedulerInbound,
    SchedulerReady,
    ShutdownReq,
    TokenizedGenerateReq,
    TokenOutput,
)

INFO = {
    "context_len": 64,
    "vocab_size": 110,
    "max_req_input_len": 63,
    "max_total_num_tokens": 1000,
}
# First tokens of a prompt with a meaning.
HOLD = 90  # never answers by itself
REFUSE, OVERLOAD, BREAK = 91, 92, 93  # abort with 400, 503, 500
CRASH = 94  # the process ends

_STATUS = {REFUSE: 400, OVERLOAD: 503, BREAK: 500}


class ScriptedScheduler:
    """Reads requests until told to stop. `received` are all messages, in order."""

    def __init__(self, ports):
        self.context = zmq.Context()
        self.inbox = self.context.socket(zmq.PULL)
        self.outbox = self.context.socket(zmq.PUSH)
        self.outbox.setsockopt(zmq.LINGER, 1000)
        self.inbox.connect(ports.scheduler_input_ipc_name)
        self.outbox.connect(ports.tokenizer_ipc_name)
        self.codec = Codec(SchedulerInbound)
        self.lock = threading.Lock()
        self.received = []
        self.held = {}
        self.is_stopped = False
        self.script = None  # replaces `echo` when set

    def send(self, message):
        with self.lock:
            self.outbox.send(self.codec.encode(message))

    def start(self):
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        return self

    def run(self):
        self.send(SchedulerReady(info=INFO))
        while not self.is_stopped:
            if not self.inbox.poll(50):
                continue
            message = self.codec.decode(self.inbox.recv())
            self.received.append(message)
            if isinstance(message, ShutdownReq):
                break
            self.handle(message)
        self.context.destroy(linger=1000)

    def stop(self):
        self.is_stopped = True
        self.thread.join(5)

    def handle(self, message):
        match message:
            case TokenizedGenerateReq():
                self.answer(message)
            case AbortReq():
                self.abort(message)
            case FlushCacheReq():
                busy = len(self.held)
                self.send(FlushCacheReply(call_id=message.call_id, success=not busy))
            case ProfileReq(options=options):
                text = "wrote it" if options is None else f"{options.num_steps} steps"
                success = options is None or options.num_steps != 0
                self.send(ProfileReply(call_id=message.call_id, success=success, message=text))
            case InternalStateReq():
                state = {"num_running_reqs": len(self.held), "last_gen_throughput": 5.0}
                self.send(InternalStateReply(call_id=message.call_id, state=state))

    def answer(self, req):
        first = req.input_ids[0]
        if first == HOLD:
            self.held[req.rid] = req
            self.send(BatchTokenOutput(outputs=[output(req, [1])]))
        elif first == CRASH:
            os._exit(7)
        elif first in _STATUS:
            reason = FinishReason(type="abort", message="no luck", status_code=_STATUS[first])
            self.send(BatchTokenOutput(outputs=[output(req, [], reason)]))
        else:
            for news in (self.script or echo)(req):
                self.send(BatchTokenOutput(outputs=[news]))

    def abort(self, message):
        hit = [rid for rid in self.held if message.abort_all or rid.startswith(message.rid)]
        for rid in hit:
            reason = FinishReason(type="abort", message=message.message)
            self.send(BatchTokenOutput(outputs=[output(self.held.pop(rid), [], reason)]))

    def requests(self):
        return [m for m in self.received if isinstance(m, TokenizedGenerateReq)]

    def wait_for(self, kind):
        """The first message of a kind; fails after some seconds."""
        for _ in range(500):
            found = [m for m in list(self.received) if isinstance(m, kind)]
            if found:
                return found[0]
            time.sleep(0.01)
        raise AssertionError(f"no {kind.__name__} came")


def output(req, new_ids, reason=None, completion_tokens=None, **more):
    return TokenOutput(
        rid=req.rid,
        new_ids=new_ids,
        prompt_tokens=len(req.input_ids),
        completion_tokens=len(new_ids) if completion_tokens is None else completion_tokens,
        cached_tokens=0,
        finish_reason=reason,
        **more,
    )


def echo(req):
    """The prompt again: one token per news when streaming, else all at once."""
    ids = req.input_ids[: req.sampling_params.max_new_tokens]
    length = FinishReason(type="length", length=len(ids))
    if not req.stream:
        return [
            output(req, ids, length, logprobs=logprobs(req, ids) if req.return_logprob else None)
        ]
    news = []
    for i, token_id in enumerate(ids):
        chunk = logprobs(req, [token_id], with_input=i == 0) if req.return_logprob else None
        reason = length if i + 1 == len(ids) else None
        news.append(output(req, [token_id], reason, completion_tokens=i + 1, logprobs=chunk))
    return news


def logprobs(req, ids, with_input=True):
    """Token t has logprob -t; the alternatives are t and t + 1."""
    start = req.logprob_start_len if req.logprob_start_len >= 0 else len(req.input_ids)
    prompt = req.input_ids[start:] if with_input else []
    tops = bool(req.top_logprobs_num)
    wanted = req.token_ids_logprob or []
    pairs = [(-float(t), t) for t in prompt]
    if pairs and start == 0:
        pairs[0] = (None, prompt[0])
    return LogprobChunk(
        input_token=pairs if with_input else None,
        input_top=[None] * len(prompt) if tops and with_input else None,
        input_ids=[None] * len(prompt) if wanted and with_input else None,
        output_token=[(-float(t), t) for t in ids],
        output_top=[[(-float(t), t), (-9.0, t + 1)] for t in ids] if tops else [],
        output_ids=[[(-9.0, w) for w in wanted] for _ in ids] if wanted else [],
    )


def run_scripted(server_args, port_args, tp_rank, parent_pid):
    """Target of a spawned process."""
    ScriptedScheduler(port_args).run()


def run_failing(server_args, port_args, tp_rank, parent_pid):
    """A scheduler that says why it cannot start."""
    scheduler = ScriptedScheduler(port_args)
    scheduler.send(SchedulerReady(error="ConfigError: the model is too large"))
    scheduler.context.destroy(linger=1000)


def run_silent_death(server_args, port_args, tp_rank, parent_pid):
    """A scheduler that dies without a word before it is ready."""
    os._exit(9)
