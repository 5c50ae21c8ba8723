#!/usr/bin/python3
"""What a call of a process group defined in Python costs in PyTorch, from C++: dispatch_torch.py FOLDER [--rounds N]

FOLDER is where the extension is built, with g++ and Debian's libtorch-dev, pybind11-dev and python3-dev. CSV on stdout:
case,threads,ns_min,ns_median,ns_max. Rounds over all rows are the outermost loop. threads 0 is the Python thread itself
with the GIL given up; 1, 2, 4 are threads of C++, wall time / all calls; "kept" threads keep a Python thread state.
"""
import os
import subprocess
import sys
import sysconfig

import torch
import torch.distributed as dist
from torch.futures import Future


def build(folder):
    here = os.path.dirname(os.path.abspath(__file__))
    source = os.path.join(here, "dispatch_torch.cpp")
    library = os.path.join(folder, "dispatch_torch_ext.so")
    if not os.path.exists(library) or os.path.getmtime(library) < os.path.getmtime(source):
        os.environ.setdefault("CUDA_HOME", "/nonexistent")
        from torch.utils import cpp_extension as extension
        flags = ["-O2", "-std=c++17", "-fPIC", "-shared", "-w", "-D_GLIBCXX_USE_CXX11_ABI=1",
                 "-DTORCH_EXTENSION_NAME=dispatch_torch_ext"]
        flags += ["-I" + p for p in extension.include_paths()] + ["-I" + sysconfig.get_paths()["include"]]
        flags += [source, "-o", library + ".part"] + ["-L" + p for p in extension.library_paths()]
        subprocess.check_call(["g++"] + flags + ["-ltorch_python", "-ltorch", "-ltorch_cpu", "-lc10"])
        os.rename(library + ".part", library)
    sys.path.insert(0, folder)
    import dispatch_torch_ext
    return dispatch_torch_ext


class DoneWork(dist.Work):
    def __init__(self, future=None):
        super().__init__()
        self.future = future

    def wait(self, timeout=None):
        return True

    def get_future(self):
        return self.future


def done(tensors):
    future = Future()
    future.set_result(tensors)
    return future


class Cached(dist.ProcessGroup):
    """The cheapest override: returns one Work that is ready."""

    def __init__(self, rank=0, size=1):
        super().__init__(rank, size)
        self.work = DoneWork(done([]))

    def getBackendName(self):
        return "cached"

    def allreduce(self, tensors, opts=None):
        return self.work


class NewWork(Cached):
    def allreduce(self, tensors, opts=None):
        return DoneWork()


class NewFuture(Cached):
    """As torch's own tests do it: a new Work over a new, completed Future."""

    def allreduce(self, tensors, opts=None):
        return DoneWork(done(tensors))


class KeptFuture(Cached):
    """Keeps the Work, or its Python half dies with the call and C++'s getFuture() finds no override."""

    def allreduce(self, tensors, opts=None):
        self.last = DoneWork(done(tensors))
        return self.last


class Delegates(Cached):
    """Adds nothing and passes on to a group in C++."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def allreduce(self, tensors, opts=None):
        return self.inner.allreduce(tensors, opts)


def main():
    if len(sys.argv) not in (2, 4) or len(sys.argv) == 4 and sys.argv[2] != "--rounds":
        sys.exit(__doc__)
    rounds = int(sys.argv[3]) if len(sys.argv) == 4 else 9
    ext = build(sys.argv[1])
    torch.set_num_threads(1)
    tensor = torch.ones(2)
    call, wait, future = range(3)
    native = ext.native()
    cached, new_work, new_future, kept = Cached(), NewWork(), NewFuture(), KeptFuture()
    delegates = Delegates(native)
    rows = [("native", 0, native, call, False, 200000), ("cached work", 0, cached, call, False, 20000),
            ("cached work and wait", 0, cached, wait, False, 20000), ("new work", 0, new_work, call, False, 20000),
            ("new work and future", 0, new_future, call, False, 10000),
            ("delegates", 0, delegates, call, False, 10000),
            ("new work, future and wait", 0, kept, future, False, 10000)]
    for threads in (1, 2, 4):
        for keeps in (False, True):
            suffix = ", kept thread" if keeps else ""
            rows.append(("cached work" + suffix, threads, cached, call, keeps, 10000))
            rows.append(("new work and future" + suffix, threads, new_future, call, keeps, 5000))
            rows.append(("delegates" + suffix, threads, delegates, call, keeps, 5000))
    figures = [[] for _ in rows]
    for _ in range(rounds):
        for (_, threads, group, mode, keeps, n), list_ in zip(rows, figures):
            ext.run(group, tensor, n // 20, threads, mode, keeps)
            list_.append(ext.run(group, tensor, n, threads, mode, keeps))
    print("case,threads,ns_min,ns_median,ns_max")
    for (case, threads, *_), list_ in zip(rows, figures):
        list_.sort()
        print('"%s",%d,%.0f,%.0f,%.0f' % (case, threads, list_[0], list_[len(list_) // 2], list_[-1]))


main()
