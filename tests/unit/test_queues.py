import random
import threading

from volgate.operations.queues import Queues


def test_first_in_first_out_per_object_and_parallel_between_objects():
    queues, ran = Queues(), []
    for name, keys in (("a", ("x",)), ("b", ("x", "y")), ("c", ("y",)), ("d", ("z",))):
        queues.enter(name, keys, lambda n=name: ran.append(n))
    assert ran == ["a", "d"]
    queues.leave("a")
    assert ran == ["a", "d", "b"]
    queues.leave("b")
    assert ran == ["a", "d", "b", "c"]


def test_random_locking_never_deadlocks_or_overlaps():
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chance, queues = random.Random(seed), Queues()
    inside: dict[str, int] = {}
    finished, lock, everybody = [], threading.Lock(), threading.Event()

    def run(member: int, keys: tuple[str, ...]) -> None:
        with lock:
            for key in keys:
                assert inside.setdefault(key, 0) == 0, f"two in {key}"
                inside[key] += 1
        with lock:
            for key in keys:
                inside[key] -= 1
            finished.append(member)
        queues.leave(member)
        if len(finished) == 500:
            everybody.set()

    for member in range(500):
        keys = tuple(sorted({chance.choice("abcde") for _ in range(chance.randint(1, 3))}))
        queues.enter(member, keys, lambda m=member, k=keys: threading.Thread(target=run, args=(m, k)).start())
    assert everybody.wait(20)
    assert len(queues) == 0
