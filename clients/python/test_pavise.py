"""Uses each request of an agent's API; agent/python_test.go runs it with the socket of an agent whose kernel plays a story."""

import sys
import threading
import typing

import pavise

GOOD = """apiVersion: pavise.dev/v1alpha1
kind: Policy
metadata: {name: %s}
spec:
  mode: monitor
  rules:
  - {name: r, on: [file.open], when: %s, action: deny}
"""


def refused(status: int, fn, *args, **kwargs) -> pavise.APIError:
    try:
        fn(*args, **kwargs)
    except pavise.APIError as e:
        assert e.status == status, (e.status, status, str(e))
        return e
    raise AssertionError(f"not refused: {fn.__name__} {args}")


def main(path: str) -> None:
    a = pavise.Client(path)
    used = set()

    class Spy:
        def __getattr__(self, name):
            used.add(name)
            return getattr(a, name)

    c = Spy()

    for cls in [v for v in vars(pavise).values() if isinstance(v, type)] + [f for f in vars(pavise.Client).values() if callable(f)]:
        if getattr(cls, "__module__", "") == "pavise":
            typing.get_type_hints(cls)  # each type is there

    status = c.status()
    assert status["generation"] == 1 and status["peer"]["role"] == "admin", status
    assert c.health() == {"status": "ok"} and c.ready()["ready"]
    assert "pavise_generation 1" in c.metrics()
    assert c.openapi()["info"]["version"] == "v1"
    assert c.doctor()["operations"][0]["op"] == "file.open"
    assert c.processes()["processes"][0]["pid"] == 4000100

    # Apply, as bytes and as text, with a set, dry; and what is refused.
    change = c.apply_policies(GOOD % ("one", 'file.path == "/etc/shadow"'), file="one.yaml", dry_run=True)
    assert change["dry_run"] and change["generation"] == 0, change
    assert c.policies()["policies"] == []
    change = c.apply_policies((GOOD % ("one", 'file.path == "/etc/shadow"')).encode(), file="one.yaml")
    assert change["generation"] == 2 and change["policies"][0]["name"] == "one", change
    change = c.apply_policies(GOOD % ("two", "file.path.inSet('tools.txt')"), {"tools.txt": b"/usr/bin/nc\n"})
    assert change["generation"] == 3, change
    assert [p["name"] for p in c.policies()["policies"]] == ["one", "two"]
    assert "inSet" in c.policy("two")["source"]

    e = refused(422, c.apply_policies, (GOOD % ("bad", "file.path == 1")).replace("file.open", "file.opn"), file="bad.yaml")
    assert e.details and e.details[0]["file"] == "bad.yaml" and e.details[0]["line"] == 7, e.details
    assert "bad.yaml:7" in str(e) and "file.opn" in str(e), str(e)
    assert "over 1 MiB" in refused(413, c.apply_policies, "a" * (2 << 20)).message
    assert refused(404, c.policy, "../no such/thing?x").message.startswith('get "../no such/thing?x"')
    assert 'want a duration' in refused(400, c.delete_policy, "one", confirm_within="soon").message
    assert "too-large" not in refused(422, lambda: list(c.events(where="nonsense("))).message

    # Modes, revisions, shadow, log.
    assert c.set_mode("one", {"mode": "enforce"})["policies"][0]["mode"] == "enforce"
    refused(400, c.set_mode, "one", {"mode": "loud"})
    c.delete_policy("two", confirm_within="60s")
    assert refused(409, c.delete_policy, "one").message.startswith("a revision waits to be confirmed")
    kept = c.confirm()["revision"]
    revisions = c.revisions()["revisions"]
    assert revisions[-1]["number"] == kept and revisions[-1]["current"] and revisions[-1]["by"]["uid"] >= 0, revisions[-1]
    assert revisions[-1]["from"] == "delete two"
    assert c.revision(kept)["documents"][0]["name"] == "one"
    assert len(c.rollback(0)["policies"]) == 2
    assert c.set_shadow(GOOD % ("cand", 'file.path == "/x"'))["on"] and c.shadow()["on"]
    assert c.promote(dry_run=True, max_stricter=0)["dry_run"]
    assert not c.end_shadow()["on"]
    refused(404, c.end_shadow)
    assert c.log() == {"level": "info"} and c.set_log({"level": "debug"}) == {"level": "debug"}

    # Streams: what was, and what comes; two at once, and one is left early.
    assert [x["op"] for x in c.events(limit=1)] == ["file.open"]
    assert list(c.events(limit=0)) == []
    assert "not followed" in refused(409, lambda: list(c.flows(ended=True, where="flow.bytes > 0"))).message
    others = []
    t = threading.Thread(target=lambda: others.extend(x for x, _ in zip(pavise.Client(path).events(follow=True), range(3))))
    t.start()
    n = 0
    for event in c.events(follow=True, limit=1, where='file.path == "/etc/shadow"'):
        assert event["file"]["path"] == "/etc/shadow" and event["op"] == "file.open", event
        assert event["process"]["exe"]["path"] == "/usr/sbin/\x1bnginx", event
        n += 1
        if n == 5:
            break
    t.join(30)
    assert not t.is_alive() and len(others) == 3, others
    top = list(c.top(count=1, interval="200ms", cost=True, rows=5))
    assert len(top) == 1 and top[0]["interval_ns"] >= 200_000_000 and top[0]["processes"][0]["exe"] == "/usr/sbin/\x1bnginx", top
    found = list(c.history(limit=2, where='op == "file.open"'))
    assert found[0]["event"]["file"]["path"] == "/etc/shadow" and found[-1]["end"]["matched"] >= 2, found
    groups = [x["group"] for x in c.history(group=["op", "file.path"], to="2100-01-01T00:00:00Z") if "group" in x]
    assert ["file.open", "/etc/shadow"] in [g["values"] for g in groups], groups
    refused(404, c.learning)
    assert c.start_learning({"subject": 'process.exe.path == "/x"', "for_ns": 60 * 10**9})["on"] and c.learning()["subject"]
    assert not c.end_learning()["on"] and list(c.learned()) == []
    assert c.isolations() == {"isolations": []}
    assert "ngnix.service" in refused(404, c.isolate, {"subject": {"unit": "ngnix.service"}, "exceptions": ["10.0.0.0/8"]}).message
    refused(404, c.release, "isolate-1")
    assert c.why(event["id"])["event"]["id"] == event["id"]
    refused(404, c.why, 10**9)

    missing = {n for n in vars(pavise.Client) if not n.startswith("_")} - used
    assert not missing or sys.argv[2:] == ["--some"], f"not used: {missing}"
    try:
        pavise.Client(path + ".none").status()
        raise AssertionError("no agent, and no error")
    except FileNotFoundError:
        pass
    print("ok")


main(sys.argv[1])
