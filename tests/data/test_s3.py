"""The same store in a folder, behind an S3 server and written by a Ray cluster."""

import importlib.util
import os
import signal
import socket
import tarfile
import time
from contextlib import ExitStack
from dataclasses import replace

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vistok.bench._local_s3 import local_s3
from vistok.data import on_ray
from vistok.data.encode import encode_folder, run_plan
from vistok.data.encode_shard import Schedule
from vistok.data.encode_together import run_plans
from vistok.data.inputs.ranged import RemoteFile
from vistok.data.on_ray import OnRay
from vistok.data.plan import EncodeSettings, make_plan
from vistok.data.shard_cache import ShardCache
from vistok.data.shard_content import open_committed
from vistok.data.store import TokenStore
from vistok.data.store_files import open_files
from vistok.data.verify import verify_store

S3 = ("moto", "flask", "flask_cors", "s3fs")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in S3), reason=f"needs {', '.join(S3)} (extra dev)"
    ),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # connections of s3fs that are open when its server goes
]
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray (extra ray)")
TWO = EncodeSettings(shard_samples=2, threads=1)


@pytest.fixture(scope="module")
def server():
    with local_s3() as (bucket, app):
        yield bucket, app


@pytest.fixture
def bucket(server) -> str:
    return server[0]


def free_ports() -> dict[str, int]:
    """Ports for a node's agents: without them a node ends itself if its agents do not name theirs within seconds."""
    names = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in names]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return {name: one.getsockname()[1] for name, one in zip(names, sockets, strict=True)}


@pytest.fixture(scope="module")
def cluster():
    """Two nodes; the second one says that it has a GPU."""
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    for left in (2, 1, 0):  # on a busy machine a node may not be up within the seconds that Ray gives it
        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=1, include_dashboard=False, **free_ports())
            cluster.add_node(num_cpus=1, num_gpus=1, include_dashboard=False, **free_ports())
            break
        except Exception:
            cluster.shutdown()
            if not left:
                raise
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def data_hashes(location) -> dict[str, str]:
    """sha256 of every data file, as the commit records say, and checked."""
    assert verify_store(location) == {}
    commits = open_committed(location).commits.values()
    return {name: digest for record in commits for name, digest in record["sha256"].items()}


def test_s3_has_the_bytes_of_a_folder_and_is_resumed_and_read(discrete, photos, bucket, tmp_path):
    (photos / "p0.png").write_bytes(b"no picture")
    plan = make_plan(discrete, photos, TWO)
    local = run_plan(plan, discrete, tmp_path / "local")
    url = f"{bucket}/made/store"
    assert run_plan(plan, discrete, url, Schedule(workers=2)).tokens == local.tokens
    assert data_hashes(url) == data_hashes(tmp_path / "local")
    names = ["dataset.json", "errors/00000.jsonl"]
    assert open_files(url).contents(names) == open_files(tmp_path / "local").contents(names)
    assert [found.name for found in open_files(url).listed(".")] == ["commits", "dataset.json", "errors", "shards"]
    open_files(url).remove("commits/00002.json")
    again = run_plan(plan, discrete, url)
    assert (again.encoded, again.shards_skipped) == (2, 4)
    with pytest.raises(ValueError, match="was made by another plan"):
        run_plan(make_plan(discrete, photos, replace(TWO, batch=3)), discrete, url)
    with pytest.raises(FileExistsError, match="dataset.json: expected no such object"):
        open_files(url).create("dataset.json", b"{}")
    cached = TokenStore(url, cache=ShardCache(tmp_path / "cache"))
    for store in (TokenStore(url), cached):
        assert [item.indices.tolist() for item in store] == [
            item.indices.tolist() for item in TokenStore(tmp_path / "local")
        ]


def test_pictures_are_read_from_s3(discrete, photos, bucket, tmp_path):
    (photos / "p1.txt").write_text("a caption")
    files = open_files(f"{bucket}/photos")
    for path in photos.rglob("*.*"):
        files.put(path.relative_to(photos).as_posix(), path.read_bytes())
    encode_folder(discrete, f"{bucket}/photos", tmp_path / "remote", TWO)
    encode_folder(discrete, photos, tmp_path / "local", TWO)
    there, here = TokenStore(tmp_path / "remote"), TokenStore(tmp_path / "local")
    assert list(there.rows) == list(here.rows) and there.rows[1]["caption"] == "a caption"


def test_tars_and_tables_are_read_from_s3_by_ranges(discrete, photos, server, tmp_path):
    bucket, app = server
    files, there = open_files(f"{bucket}/inputs"), tmp_path / "inputs"
    paths = sorted(photos.rglob("*.png"))
    for kind in ("tars", "tables"):
        (there / kind).mkdir(parents=True)
    for number in range(2):
        with tarfile.open(there / "tars" / f"{number}.tar", "w") as archive:
            for path in paths[number::2]:
                archive.add(path, path.name)
        table = pa.table({"image": [path.read_bytes() for path in paths[number::2]]})
        pq.write_table(table, there / "tables" / f"{number}.parquet", row_group_size=2)
    for path in there.rglob("*.*"):
        files.put(path.relative_to(there).as_posix(), path.read_bytes())
    app.rate = 0.1
    try:
        for kind in ("tars", "tables"):
            encode_folder(discrete, f"{bucket}/inputs/{kind}", tmp_path / f"{kind}-s3", TWO, Schedule(workers=2))
            encode_folder(discrete, there / kind, tmp_path / f"{kind}-here", TWO)
            assert data_hashes(tmp_path / f"{kind}-s3") == data_hashes(tmp_path / f"{kind}-here")
    finally:
        app.rate = 0.0


def test_what_others_write_after_a_listing_is_seen(bucket):
    other = fsspec.filesystem("s3", skip_instance_cache=True)  # as another process has one
    files = open_files(f"{bucket}/listed")
    files.put("shards/first", b"1")
    assert [found.bytes for found in files.listed("shards")] == [1]
    before = RemoteFile(files, "shards/first").version
    other.pipe_file(f"{bucket}/listed/shards/first", b"first")
    other.pipe_file(f"{bucket}/listed/shards/second", b"second")
    now = RemoteFile(files, "shards/first")
    assert now.version != before and now.size == files.size_of("shards/first") == 5
    files.listed("shards")
    other.pipe_file(f"{bucket}/listed/shards/third", b"third")
    files.move("shards/third", "shards/second")
    assert files.contents(["shards/second", "shards/third"]) == [b"third", None]


def test_requests_that_fail_are_repeated(discrete, photos, server, tmp_path):
    bucket, app = server
    encode_folder(discrete, photos, tmp_path / "local", TWO)
    app.rate = 0.2
    try:
        encode_folder(discrete, photos, f"{bucket}/failing", TWO)
        assert data_hashes(f"{bucket}/failing") == data_hashes(tmp_path / "local")
    finally:
        app.rate = 0.0
    assert app.failed > 3


@needs_ray
@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.parametrize("pools", [OnRay(num_cpus=1), OnRay(num_gpus=0.5, decode_cpus=1)], ids=["whole", "two-pools"])
def test_ray_writes_the_bytes_of_a_local_run_to_a_folder_and_to_s3(discrete, photos, server, cluster, tmp_path, pools):
    bucket, app = server
    (photos / "p0.png").write_bytes(b"no picture")
    plan = make_plan(discrete, photos, TWO)
    run_plan(plan, discrete, tmp_path / "local", Schedule(workers=1))
    done = []
    for out in (tmp_path / "ray", f"{bucket}/ray-{pools.decode_cpus}"):
        summary = run_plan(plan, discrete, out, Schedule(workers=2), executor=pools, on_images=done.append)
        assert (summary.images, summary.errors, summary.shards) == (8, 1, 5)
        assert data_hashes(out) == data_hashes(tmp_path / "local")
        errors = [open_files(place).contents(["errors/00000.jsonl"]) for place in (out, tmp_path / "local")]
        assert errors[0] == errors[1]
        workers = {record["worker"] for record in open_committed(out).commits.values()}
        assert workers and all(not worker.endswith(f":{os.getpid()}") for worker in workers)
    assert sum(done) == 18


@needs_ray
@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.parametrize("decode_cpus", [0, 1])
def test_ray_encodes_with_several_tokenizers_what_each_makes_alone(
    discrete, continuous, photos, cluster, tmp_path, decode_cpus
):
    (photos / "p0.png").write_bytes(b"no picture")
    models = [discrete, continuous]
    plans = [make_plan(model, photos, TWO) for model in models]
    for number, (plan, model) in enumerate(zip(plans, models, strict=True)):
        run_plan(plan, model, tmp_path / f"alone{number}")
    run_plan(plans[0], discrete, tmp_path / "ray0")
    (tmp_path / "ray0" / "commits" / "00003.json").unlink()
    outs, done = [tmp_path / "ray0", tmp_path / "ray1"], []
    executor = OnRay(num_cpus=1, decode_cpus=decode_cpus)
    summaries = run_plans(plans, models, outs, Schedule(workers=1), on_images=done.append, executor=executor)
    assert [summary.errors for summary in summaries] == [1, 1] and sum(done) == 18
    for number, out in enumerate(outs):
        assert data_hashes(out) == data_hashes(tmp_path / f"alone{number}")
        assert not [*(out / "shards").glob("*.attempt.*")]


@needs_ray
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_worker_that_dies_on_the_cluster_is_replaced(discrete, photos, cluster, tmp_path):
    plan = make_plan(discrete, photos, TWO)
    run_plan(plan, discrete, tmp_path / "local")
    killed: list[int] = []

    def kill_who_was_first(count: int) -> None:
        if count and not killed:
            [record, *_] = open_committed(out).commits.values()
            killed.append(int(record["worker"].split(":")[1]))
            os.kill(killed[0], signal.SIGKILL)

    out = tmp_path / "ray"
    options = {"executor": OnRay(), "on_images": kill_who_was_first}
    run_plan(plan, discrete, out, Schedule(workers=2), **options)
    assert killed and data_hashes(out) == data_hashes(tmp_path / "local")
    killed.clear()
    out = tmp_path / "stopped"
    with pytest.raises(ChildProcessError, match="died 1 times, 4 of 5 shards are left; run the same command again"):
        run_plan(plan, discrete, out, Schedule(workers=1, max_restarts=0), **options)
    run_plan(plan, discrete, out, executor=OnRay())
    assert data_hashes(out) == data_hashes(tmp_path / "local")


@needs_ray
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_run_that_fails_gives_its_places_on_the_cluster_back(discrete, photos, cluster, tmp_path, monkeypatch):
    import ray

    def full(*_):
        raise OSError("no space left")

    plan = make_plan(discrete, photos, TWO)
    with monkeypatch.context() as patched, pytest.raises(OSError, match="no space left") as caught:
        patched.setattr(on_ray, "commit_attempt", full)
        run_plan(plan, discrete, tmp_path / "ray", Schedule(workers=1), executor=OnRay(num_cpus=1))
    for _ in range(100):  # a notebook keeps the last error, and with it what its frames hold
        if ray.available_resources().get("CPU") == 2.0:
            break
        time.sleep(0.1)
    else:
        pytest.fail(f"{caught.value!r} holds {ray.available_resources()} of 2 CPUs")
    assert run_plan(plan, discrete, tmp_path / "ray", Schedule(workers=2), executor=OnRay(num_cpus=1)).images == 9
