"""How fast and in how much memory a 2 GB bfloat16 Llama (4 safetensors files) is loaded onto 8 CPU devices.

    python benchmarks/load.py [--quick] [--folder DIR] [--rounds N]

Time is that of `load_decoder`, tiny compilations included, over that of plain `readinto` of the same files into fresh
memory: page cache hot, and cold (dropped before each run and looked at with mincore). Both run in turns, in fresh
processes that have started the same devices, so that both come to fresh memory at the same age of their process: on
virtual machines its price has been seen to vary tenfold. Memory is the peak of RssAnon above a baseline taken when all
devices have run a program, over the bytes of the arrays held. Targets: memory 1.15, hot 3, cold 1.5. The last line is
JSON.
"""

import argparse
import ctypes
import json
import mmap
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib import metadata
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CASES = [("1x8x1", "bfloat16"), ("1x4x2", "bfloat16"), ("1x8x1", "float32")]
TARGETS = {"memory": 1.15, "hot": 3.0, "cold": 1.5}
INTERVAL = 0.002  # s between looks at the memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200 MB, and half the rounds")
    parser.add_argument("--folder", type=Path, help="where the model is written, and kept for the next run")
    parser.add_argument("--rounds", type=int, help="runs of each kind")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(CHILDREN[options.child[0]](*options.child[1:])))
        return
    size, rounds = ("quick", 3) if options.quick else ("full", 7)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)) / f"llama-{size}"
        if not (folder / "config.json").exists():
            import random_llama

            random_llama.write(folder, size)
        compare(folder, options.rounds or rounds, size)


def compare(folder: Path, rounds: int, size: str) -> None:
    """Runs all cases and prints what came out."""
    stored = sum(path.stat().st_size for path in weight_files(folder))
    stack = f"jax {metadata.version('jax')}, Python {platform.python_version()}"
    print(f"{processor()}, {os.cpu_count()} cores, {stack}; {folder} on {device(folder)}, {stored / 1e9:.2f} GB")
    results = []
    for mesh, dtype in CASES:
        found = {"mesh": mesh, "dtype": dtype, "memory_ratio": memory(folder, mesh, dtype)}
        for cache in ("hot", "cold"):
            found |= times(folder, mesh, dtype, cache, rounds)
        results.append(found)
        print(
            f"mesh {mesh} {dtype:8}  memory {found['memory_ratio']:.3f}   "
            + "   ".join(
                f"{cache} {found[f'{cache}_s']:.2f} s / {found[f'{cache}_readinto_s']:.2f} s = "
                f"{found[f'{cache}_ratio']:.2f}"
                for cache in ("hot", "cold")
            )
        )
    worst = {
        key: max(case[f"{key}_ratio"] for case in results if case["dtype"] == "bfloat16") for key in ("memory", *TIMED)
    }
    print("targets: " + ", ".join(f"{key} {worst[key]:.2f} <= {limit}" for key, limit in TARGETS.items()))
    summary = {
        "benchmark": "load", "ratio": worst["hot"], "baseline": "readinto", "stack": stack, "dtype": "bfloat16",
        "mesh": "worst of 1x8x1 and 1x4x2", "size": size, "bytes": stored, "rounds": rounds,
        **{f"{key}_ratio": value for key, value in worst.items()}, "cases": results,
    }  # fmt: skip
    print(json.dumps(summary))


TIMED = ("hot", "cold")


def memory(folder: Path, mesh: str, dtype: str) -> float:
    """Peak of anonymous memory over the bytes held; the larger of two runs."""
    runs = [child("memory", folder, mesh, dtype) for _ in range(2)]
    return max(run["peak"] / run["held"] for run in runs)


def times(folder: Path, mesh: str, dtype: str, cache: str, rounds: int) -> dict[str, float]:
    """Medians of loading and of plain reading, in turns, and of the ratio of each pair."""
    pairs = []
    for turn in range(rounds + 1):
        pair = {}
        for kind in ("load", "readinto") if turn % 2 else ("readinto", "load"):
            prepare(folder, cache)
            pair[kind] = child(kind, folder, mesh, dtype)["seconds"]
        pairs.append(pair)
    pairs = pairs[1:]  # the first touches memory that the machine has to find
    loads, reads = ([pair[kind] for pair in pairs] for kind in ("load", "readinto"))
    return {
        f"{cache}_s": statistics.median(loads),
        f"{cache}_readinto_s": statistics.median(reads),
        f"{cache}_ratio": statistics.median(loads) / statistics.median(reads),
        f"{cache}_ratio_least": min(load / read for load, read in zip(loads, reads, strict=True)),
        f"{cache}_ratio_most": max(load / read for load, read in zip(loads, reads, strict=True)),
    }


def child(kind: str, folder: Path, mesh: str, dtype: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", kind, str(folder), mesh, dtype]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def prepare(folder: Path, cache: str) -> None:
    """Fills or empties the page cache of the weight files, and makes sure of it."""
    os.sync()
    for path in weight_files(folder):
        with path.open("rb", buffering=0) as file:
            if cache == "cold":
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            elif resident(path) < 1:
                block = bytearray(1 << 22)
                while file.readinto(block):
                    pass
        share = resident(path)
        if (share > 0.01) if cache == "cold" else (share < 0.99):
            raise SystemExit(f"{path}: {share:.0%} of it is in the page cache; {cache} cannot be measured here")


def resident(path: Path) -> float:
    """Share of a file's pages that are in the page cache."""
    pages = -(-path.stat().st_size // mmap.PAGESIZE)
    found = (ctypes.c_ubyte * pages)()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE) as mapped:
        view = np.frombuffer(mapped, np.uint8)
        status = ctypes.CDLL(None).mincore(ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(view.size), found)
        del view
    if status:
        raise SystemExit(f"{path}: mincore failed")
    return sum(page & 1 for page in found) / pages


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def run_readinto(folder: str, mesh: str, dtype: str) -> dict[str, float]:
    """Plain reading of every file into fresh memory, all of it held, as the loaded arrays are."""
    loader(folder, mesh, dtype)
    paths = weight_files(Path(folder))
    buffers = [np.empty(path.stat().st_size, np.uint8) for path in paths]
    started = time.perf_counter()
    for path, buffer in zip(paths, buffers, strict=True):
        with path.open("rb", buffering=0) as file:
            done = 0
            while done < len(buffer):
                done += file.readinto(buffer[done:].data)
    return {"seconds": time.perf_counter() - started}


def run_load(folder: str, mesh: str, dtype: str) -> dict[str, float]:
    load = loader(folder, mesh, dtype)
    started = time.perf_counter()
    load()
    return {"seconds": time.perf_counter() - started}


def run_memory(folder: str, mesh: str, dtype: str) -> dict[str, float]:
    load = loader(folder, mesh, dtype)
    base, peak, over = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not over.wait(INTERVAL):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    held = sum(shard.data.nbytes for array in load() for shard in array.addressable_shards)
    over.set()
    watcher.join()
    return {"peak": max(peak[0], anonymous()) - base, "held": held}


def loader(folder: str, mesh: str, dtype: str):
    """Starts the devices; returns a function that loads the model and returns its arrays."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    import jax.numpy as jnp
    from flax import nnx

    from jaxift.models.weights import check_folder, load_decoder
    from jaxift.parallel.mesh import make_mesh, sharding

    data, fsdp, tensor = map(int, mesh.split("x"))
    placed = make_mesh(data, fsdp, tensor)
    started = jax.device_put(np.zeros((8, 8), np.float32), sharding(placed, "embed", None))
    jax.block_until_ready(jax.jit(lambda x: x + 1)(started))
    config = check_folder(folder)

    def load() -> list[jax.Array]:
        decoder = load_decoder(folder, config, placed, jnp.dtype(dtype))
        return jax.block_until_ready(jax.tree.leaves(nnx.state(decoder)))

    return load


def anonymous() -> int:
    """This process's anonymous memory in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def device(folder: Path) -> str:
    """The file system that a folder is on."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    above = [mount for mount in mounts if folder.resolve().is_relative_to(mount[1])]
    name, _, kind, *_ = max(above, key=lambda mount: len(mount[1]))
    return f"{name} ({kind})"


CHILDREN = {"load": run_load, "readinto": run_readinto, "memory": run_memory}


if __name__ == "__main__":
    main()
