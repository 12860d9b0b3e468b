import pickle
from concurrent.futures import ThreadPoolExecutor

from vistok.data.inputs.kept import Kept


def test_a_thing_is_made_once_until_newer_ones_push_it_out():
    kept, made = Kept(2), []
    for key in "abacab":
        kept.get(key, lambda key=key: made.append(key))
    assert made == ["a", "b", "c", "b"]


def test_threads_that_ask_at_the_same_time_share_what_one_of_them_makes():
    kept, made = Kept(), []

    def make():
        made.append(object())
        return made[-1]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: kept.get("key", make), range(64)))
    assert len(made) == 1 and set(found) == set(made)


def test_nothing_travels_in_a_pickle():
    kept = Kept(3)
    kept.get("key", lambda: open)
    copy = pickle.loads(pickle.dumps(kept))
    assert copy.get("key", lambda: "made anew") == "made anew"
