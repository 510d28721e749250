"""Grammars in an overlapped loop: the forward pass goes ahead, sampling alone waits for the last token, and no output differs."""

from __future__ import annotations

import json
import random
import re
import string

import pytest
from scripted import EOS, VOCAB, World, expected_output, random_prompt
from scripted_grammar import Grammars, ScriptedMatcher

from sglang.srt.constrained.xgrammar_backend import XGrammarMatcher
from sglang.srt.managers.io_struct import AbortReq

SHAPES = [
    dict(),
    dict(depth=1),
    dict(depth=1, page_size=4, mixed_chunk=True),
    dict(depth=1, num_slots=160, rows=16, policy="lpm"),
    dict(depth=1, chunk_size=None, prefix_cache=False),
    dict(depth=1, chunk_size=4, retract_interval=5),
]


def overbook(world: World) -> World:
    world.planner.ratio.value = 0.0
    return world


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_random_events(shape, seed):
    """Half of the requests are bound by a grammar, some of which break; some are aborted, some retracted."""
    rng = random.Random(seed * 31 + len(str(shape)))
    world = World(**shape)
    families = [[rng.randrange(VOCAB) for _ in range(40)] for _ in range(3)]
    asked: dict[str, tuple] = {}
    aborted: set[str] = set()
    for event in range(300):
        kind = rng.random()
        if kind < 0.25:
            rid, prompt = f"r{event}", random_prompt(rng, families, 60)
            count, grammar = rng.choice([0, 1, 2, 8, 25, 60]), None
            if rng.random() < 0.5:
                grammar = f"length {rng.choice([0, 1, 5, 20])}"
                if rng.random() < 0.2:
                    grammar += f" {rng.choice(['fill', 'accept', 'nothing'])} {rng.randrange(4)}"
            options = {"regex": grammar} if grammar else {}
            stream = rng.random() < 0.5
            world.submit(rid, prompt, stream=stream, max_new_tokens=count, **options)
            asked[rid] = (prompt, count, grammar)
        elif kind < 0.3 and asked:
            aborted.add(rid := rng.choice(list(asked)))
            world.postbox.inbox.append(AbortReq(rid=rid, exact=True))
        if rng.random() < 0.02:
            overbook(world)
        world.turn()  # audits everything
    world.run_until_idle()
    assert set(world.outputs()) == set(asked)
    for rid, (ids, reason) in world.outputs().items():
        check_output(ids, reason, *asked[rid], rid in aborted)
    assert world.cache.num_used == 0
    if "retract_interval" in shape:
        assert world.planner.num_retracted > 0


def check_output(ids, reason, prompt, count, grammar, is_aborted):
    words = (grammar or "").split()
    want = expected_output(prompt, count, True, make_matcher(grammar and " ".join(words[:2])))
    broken_after = int(words[3]) if len(words) > 2 else len(want)
    if reason["type"] != "abort":
        assert ids == want and len(want) <= broken_after
    elif reason.get("status_code") == 500:  # the third token is there when the way past it breaks
        assert broken_after < max(len(want), 1)
        assert ids[:broken_after] == want[:broken_after] and len(ids) <= broken_after + 1
    else:
        assert is_aborted and ids == want[: len(ids)] and len(ids) <= broken_after


def make_matcher(grammar):
    return ScriptedMatcher(grammar, VOCAB) if grammar else None


def order(world: World) -> dict[tuple[str, int], int]:
    events = world.worker.events
    assert len(set(events)) == len(events)
    return {event: place for place, event in enumerate(events)}


def test_the_forward_pass_is_launched_before_the_last_ids_are_awaited():
    world = World(depth=1)
    world.submit("bound", [1, 2, 4], max_new_tokens=40, regex="length 12")
    world.submit("free", [1, 2, 5], max_new_tokens=10, ignore_eos=True)
    world.run_until_idle()
    at = order(world)
    last = max(step for _, step in at)
    assert last == 14  # prompts, 12 tokens, and one step more than needed
    for step in range(1, last):
        assert at["forward", step] < at["sample", step] < at["forward", step + 1]
        assert at["forward", step + 1] < at["result", step] < at["sample", step + 1]


def test_without_depth_a_step_follows_the_last_one():
    world = World(depth=0)
    world.submit("bound", [1, 2, 4], max_new_tokens=40, regex="length 5")
    world.run_until_idle()
    kinds = ["forward", "sample", "result"]
    assert world.worker.events == [(kind, step) for step in range(1, 7) for kind in kinds]


def test_nothing_waits_where_no_grammar_lacks_a_token():
    """Steps without a grammar, chunks of a prompt, and the first token of one."""
    world = World(depth=1, chunk_size=4, mixed_chunk=True)
    world.submit("free", [1, 2, 5], max_new_tokens=12, ignore_eos=True)
    for _ in range(3):
        world.turn()
    world.submit("bound", [*range(5, 15)], max_new_tokens=1, regex="length 12")
    world.run_until_idle()
    at = order(world)
    for step in range(1, max(step for _, step in at)):
        assert at["sample", step + 1] < at["result", step]
    chunks = [w for plan in world.worker.plans for w in plan.works if w.token_ids]
    assert [work.sample for work in chunks] == [True, False, False, True]


@pytest.mark.parametrize("depth", [0, 1])
def test_the_step_after_the_end_is_thrown_away(depth):
    world = World(depth=depth)
    world.submit("ends", [1, 2, 4], max_new_tokens=40, regex="length 3")
    world.submit("limit", [1, 2, 5], max_new_tokens=3, regex="length 9")
    world.run_until_idle()
    ends, limit = world.outputs()["ends"], world.outputs()["limit"]
    assert ends == (
        expected_output([1, 2, 4], 40, True, make_matcher("length 3")),
        {"type": "stop", "matched": EOS},
    )
    assert limit == (
        expected_output([1, 2, 5], 3, True, make_matcher("length 9")),
        {"type": "length", "length": 3},
    )
    # A limit is known when a step is planned, an end is not.
    assert [len(plan.works) for plan in world.worker.plans] == [2, 2, 2, 1] + [1] * depth
    assert world.cache.num_used == 0


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize(
    ("fault", "count", "message"),
    [
        ("fill", 4, r"the grammar failed after 4 tokens \(KeyError\)"),
        ("fill", 0, r"the grammar failed after 0 tokens \(KeyError\)"),
        ("accept", 5, r"the grammar failed after 5 tokens \(RuntimeError\)"),
        ("nothing", 4, "the grammar allows no further token here"),
    ],
)
def test_a_matcher_that_fails_ends_its_request_only(depth, fault, count, message):
    world = World(depth=depth)
    before = count - (fault == "accept")
    world.submit("breaks", [1, 2, 4], max_new_tokens=20, regex=f"length 12 {fault} {before}")
    world.submit("bound", [1, 2, 5], max_new_tokens=20, regex="length 12")
    world.submit("free", [1, 2, 6], max_new_tokens=20, ignore_eos=True)
    world.run_until_idle()
    outputs = world.outputs()
    ids, reason = outputs["breaks"]
    assert reason["status_code"] == 500 and re.match(message, reason["message"])
    assert len(ids) == count
    assert outputs["bound"][0] == expected_output([1, 2, 5], 20, True, make_matcher("length 12"))
    assert outputs["free"][0] == expected_output([1, 2, 6], 20, False)
    assert world.cache.num_used == 0


def test_abort_while_a_step_is_in_flight():
    world = World(depth=1)
    for rid in ("aborted", "stays"):
        world.submit(rid, [1, 2, 4], max_new_tokens=40, regex="length 12")
    for _ in range(4):
        world.turn()
    assert len(world.scheduler.in_flight) == 1
    world.postbox.inbox.append(AbortReq(rid="aborted", exact=True))
    world.run_until_idle()
    want = expected_output([1, 2, 4], 40, True, make_matcher("length 12"))
    assert world.outputs()["stays"][0] == want
    ids, reason = world.outputs()["aborted"]
    assert reason["type"] == "abort" and ids == want[:3]
    assert world.cache.num_used == 0


class Letters:
    """A tokenizer whose every id is one character."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [ord(character) - 0x100 for character in text]

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(chr(0x100 + token) for token in ids)


@pytest.mark.parametrize("depth", [0, 1])
def test_stop_string_in_the_step_before(depth):
    world = World(depth=depth, tokenizer=Letters())
    want = expected_output([1, 2, 4], 40, True, make_matcher("length 12"))
    stop = Letters().decode(want[4:6])
    world.submit("stops", [1, 2, 4], max_new_tokens=40, regex="length 12", stop=[stop])
    world.submit("goes on", [1, 2, 4], max_new_tokens=40, regex="length 12")
    world.run_until_idle()
    ids, reason = world.outputs()["stops"]
    assert ids == want[:6] and reason == {"type": "stop", "matched": stop}
    assert world.outputs()["goes on"][0] == want
    assert world.cache.num_used == 0


# --- a real library

TEXTS = {
    "regex": r"(19|20)[0-9]{2}-(0[1-9]|1[0-2])-[0-3][0-9]( [a-z]{1,8})?",
    "json_schema": json.dumps(
        {
            "type": "object",
            "properties": {
                "age": {"type": "integer", "minimum": 0, "maximum": 120},
                "ok": {"type": "boolean"},
                "tags": {"type": "array", "items": {"enum": ["x", "yy"]}, "maxItems": 2},
            },
            "required": ["age", "ok", "tags"],
            "additionalProperties": False,
        }
    ),
}


@pytest.fixture(scope="module")
def make_xgrammar_matcher():
    """text -> matcher, over the printable characters and the end of a text."""
    import xgrammar

    characters = [c for c in string.printable if c.isprintable()]
    vocab = [*characters[:EOS], "</s>", *characters[EOS:]]
    vocab += [""] * (VOCAB - len(vocab))
    info = xgrammar.TokenizerInfo(vocab, vocab_size=VOCAB, stop_token_ids=[EOS])
    compiler = xgrammar.GrammarCompiler(info, max_threads=1)
    compiled = {
        TEXTS["regex"]: compiler.compile_regex(TEXTS["regex"]),
        TEXTS["json_schema"]: compiler.compile_json_schema(
            TEXTS["json_schema"], any_whitespace=False
        ),
    }
    make = lambda text: XGrammarMatcher(xgrammar.GrammarMatcher(compiled[text]))  # noqa: E731
    return make, vocab


@pytest.mark.parametrize(
    "shape", [dict(depth=0), dict(depth=1), dict(depth=1, num_slots=96, mixed_chunk=True)], ids=str
)
def test_texts_of_a_real_library(shape, make_xgrammar_matcher):
    """Dates and JSON beside free text, with the tokens that one request alone would get."""
    make, vocab = make_xgrammar_matcher
    world = overbook(World(**shape))
    world.scheduler.grammars = Grammars(make)
    asked = {}
    for index in range(12):
        kind = ("regex", "json_schema", None)[index % 3]
        prompt = [index, 7, 8, 9]
        world.submit(
            f"r{index}", prompt, max_new_tokens=60, **({kind: TEXTS[kind]} if kind else {})
        )
        asked[f"r{index}"] = (kind, prompt)
        world.turn()
    world.run_until_idle()
    for rid, (kind, prompt) in asked.items():
        ids, reason = world.outputs()[rid]
        assert ids == expected_output(prompt, 60, True, make(TEXTS[kind]) if kind else None)
        text = "".join(vocab[token] for token in ids[:-1])
        if kind == "regex":
            assert re.fullmatch(TEXTS["regex"], text) and reason["type"] == "stop"
        elif kind == "json_schema":
            assert list(json.loads(text)) == ["age", "ok", "tags"] and reason["type"] == "stop"
    assert (world.planner.num_retracted > 0) == ("num_slots" in shape)
