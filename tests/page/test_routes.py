"""The page's routes behind their guard, as ASGI: what is at work does not hold up others, and ends with who asked.

Without network; the order of things is told by events, never by the time they take.
"""

import asyncio
import json
import threading

import pytest

from remoco.page import exchange, guard, routes
from remoco.page.jobs import QUEUE
from remoco.page.routes import STATIC, application
from tests.page.client import SETTINGS, Client, Steps, generate, run


def test_a_small_get_is_answered_while_a_large_body_is_parsed(monkeypatch):
    began, answered, parse = threading.Event(), threading.Event(), routes.parse_json

    def parsed(data, values):
        began.set()
        assert answered.wait(30), "the GET was not answered before the body was parsed"
        return parse(data, values)

    monkeypatch.setattr(routes, "parse_json", parsed)

    async def test():
        own = application(Steps())
        for route in ("open", "generate", "paths"):
            began.clear(), answered.clear()
            large = Client(
                own, f"/page/{route}", b'{"a": "' + b"x" * (900_000 if route == "paths" else 40_000_000) + b'"}'
            )
            while not began.is_set():
                await asyncio.sleep(0.001)
            assert await Client(own, "/", method="GET").answer() == (200, (STATIC / "index.html").read_bytes())
            assert large.status is None
            answered.set()
            assert (await large.answer())[0] == 400

    run(test())


@pytest.mark.parametrize("body", [b"[" * 47_000_000, b"[" + b"[]," * 15_000_000, b'{"a":' * 9_000_000])
def test_brackets_are_refused_by_their_first_piece(body, monkeypatch):
    """47 MB of them held up everybody for 46 s: they are neither received to their end nor given to a parser."""
    monkeypatch.setattr(routes, "parse_json", lambda *given: pytest.fail("parsed"))

    async def test():
        pieces = [body[i : i + 65536] for i in range(0, len(body), 65536)]
        for route in ("open", "control", "save", "attach", "moving", "generate", "paths", "cancel", "examples"):
            client = Client(application(Steps()), f"/page/{route}", pieces)
            assert (await client.answer())[0] in (400, 413) and len(client._parts) > len(pieces) - 40

    run(test())


@pytest.mark.parametrize("route", ["paths", "cancel", "examples"])
def test_beside_what_holds_files_a_body_is_small(route):
    async def test():
        pieces = [b" " * 65536] * 20
        status, data = await Client(application(Steps()), f"/page/{route}", pieces).answer()
        assert status == 413 and b"at most 1048576 bytes" in data

    run(test())


def test_a_generation_ends_at_its_next_step_when_its_client_leaves_and_the_next_begins():
    async def test():
        studio = Steps()
        own = application(studio)
        leaves, stays = generate(own, 1), generate(own, 2, steps=2)
        await leaves.event(lambda event: event.get("state") == "running")
        assert (await stays.event(lambda event: event.get("state") == "waiting"))["place"] == 1
        for step in (1, 2):
            studio.let.release()
            await leaves.event(lambda event, step=step: event.get("step") == step)
        leaves.leave()
        await leaves.task  # in the middle of the third step
        for _ in range(3):
            studio.let.release()
        assert (await stays.event(lambda event: event.get("state") == "done"))["message"] == "clip of 2"
        await stays.task
        assert studio.made == [1, 1, 1, 2, 2]  # one more step of who left, and no other
        while studio._line:  # its thread ends after its last word
            await asyncio.sleep(0.001)
        assert not studio._jobs

    run(test())


def test_a_generation_ends_when_its_client_takes_no_more_of_it(monkeypatch):
    """Neither gone nor reading: the connection is given up, and the next one's turn comes."""
    monkeypatch.setattr(guard, "STALLED", 0.05)

    class Deaf(Client):
        async def _send(self, message):
            await super()._send(message)
            if any("step" in event for event in self.events()):
                await asyncio.Event().wait()

    async def test():
        studio = Steps()
        own = application(studio)
        deaf, other = generate(own, 1, Deaf), generate(own, 2, steps=1)
        await other.event(lambda event: event.get("state") == "waiting")
        studio.let.release()
        await deaf.answer()
        for _ in range(2):
            studio.let.release()
        await other.answer()
        assert other.events()[-1]["message"] == "clip of 2" and studio.made == [1, 1, 2]
        while studio._line:  # its thread ends after its last word
            await asyncio.sleep(0.001)
        assert not studio._jobs

    run(test())


def test_who_leaves_the_line_makes_room():
    async def test():
        studio = Steps()
        own = application(studio)
        first = generate(own, 0)
        await first.event(lambda event: event.get("state") == "running")
        waiting = [generate(own, 1 + i, steps=1) for i in range(QUEUE)]
        for client in waiting:
            await client.event(lambda event: event.get("state") == "waiting")
        more = generate(own, 50)
        assert "generations are waiting already" in (await more.event(lambda e: "state" in e))["message"]
        waiting[0].leave()
        await waiting[0].task
        last = generate(own, 60, steps=1)
        assert (await last.event(lambda event: "state" in event))["place"] == QUEUE
        for client in (first, last, *waiting[1:]):
            client.leave()
        await asyncio.gather(first.task, last.task, *(client.task for client in waiting))
        studio.let.release()  # now that all are known to have left
        while studio._line:
            await asyncio.sleep(0.001)
        assert studio.made == [0]

    run(test())


def test_a_job_is_cancelled_by_its_owner_alone():
    """The server makes the secret and tells it to who asked; nothing that another person can see or guess will do."""

    async def test():
        studio = Steps()
        own = application(studio)
        mine, others = generate(own, 1), generate(own, 2)
        secret = (await mine.event(lambda event: "job" in event))["job"]
        other = (await others.event(lambda event: "job" in event))["job"]
        await others.event(lambda event: event.get("state") == "waiting")
        assert len(secret) >= 40 and secret != other and secret.encode() not in others.data

        async def cancelled(job):
            status, data = await Client(own, "/page/cancel", json.dumps({"job": job}).encode()).answer()
            return status == 200 and json.loads(data)["found"]

        guesses = ["", "0", "1", "job", secret[:-1], secret + "=", secret.swapcase(), f" {secret}", None, 0, [secret]]
        assert not any([await cancelled(guess) for guess in guesses])
        body = {"drawing": exchange.examples()[0]["drawing"] | {"job": secret}, "job": secret, "settings": SETTINGS}
        thief = Client(own, "/page/generate", json.dumps(body).encode())  # names another's secret as its own
        named = (await thief.event(lambda event: "job" in event))["job"]
        assert named not in (secret, other) and await cancelled(named)
        await thief.task
        assert thief.events()[-1]["state"] == "cancelled"
        assert {event.get("state") for event in mine.events()} <= {None, "running"}
        assert await cancelled(secret)
        studio.let.release()
        await mine.task
        assert mine.events()[-1]["state"] == "cancelled" and studio.made == [1]
        assert not await cancelled(secret)
        others.leave()
        studio.let.release()
        await others.task

    run(test())


def test_previews_that_wait_are_counted_and_a_generation_is_let_in(monkeypatch):
    held = threading.Event()
    monkeypatch.setattr(Steps, "moving", lambda self, body: held.wait(30) and {})

    async def test():
        studio = Steps()
        own = application(studio)
        many = [Client(own, "/page/moving", b"{}") for _ in range(40)]
        while sum(client.status == 503 for client in many) < 40 - routes.WAITING:
            await asyncio.sleep(0.001)
        person = generate(own, 5, steps=1)
        studio.let.release()
        assert (await person.event(lambda event: event.get("state") == "done"))["message"] == "clip of 5"
        assert (await Client(own, "/page/cancel", b'{"job": "x"}').answer())[0] == 200
        held.set()
        statuses = [(await client.answer())[0] for client in many]
        assert sorted(statuses) == [200] * routes.WAITING + [503] * (40 - routes.WAITING)
        assert (await Client(own, "/page/moving", b"{}").answer())[0] == 200

    run(test())
