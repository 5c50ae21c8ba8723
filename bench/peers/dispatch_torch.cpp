// Calls a process group's allreduce from C++ in a loop, the way torch's own C++ (DDP's reducer) calls one. dispatch_torch.py builds and
// drives it.
#include <chrono>
#include <thread>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/extension.h>
#include <vector>

using c10d::ProcessGroup;
typedef c10::intrusive_ptr<ProcessGroup> Group;

// A group in C++ whose allreduce returns one completed Work: the cost without Python.
struct DoneWork : c10d::Work {
  bool wait(std::chrono::milliseconds) override { return true; }
  bool isCompleted() override { return true; }
};
struct NativeGroup : ProcessGroup {
  c10::intrusive_ptr<c10d::Work> work = c10::make_intrusive<DoneWork>();
  NativeGroup() : ProcessGroup(0, 1) {}
  const std::string getBackendName() const override { return "native"; }
  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<at::Tensor> &,
                                           const c10d::AllreduceOptions &) override {
    return work;
  }
};

enum Mode {
  CALL,
  CALL_WAIT,
  CALL_FUTURE_WAIT
};

static void calls(const Group &group, at::Tensor tensor, long n, int mode) {
  for (long i = 0; i < n; i++) {
    std::vector<at::Tensor> tensors{tensor}; // made anew for each call, as by callers
    c10d::AllreduceOptions options;
    auto work = group->allreduce(tensors, options);
    if (mode == CALL_WAIT)
      work->wait();
    else if (mode == CALL_FUTURE_WAIT)
      work->getFuture()->wait();
  }
}

// Nanoseconds per call: wall time / all calls. threads 0: the calling thread, with the GIL given up. kept: each thread keeps a
// Python thread state for its life, which threads of C++ programs do not do by themselves.
static double run(Group group, at::Tensor tensor, long n, int threads, int mode, bool kept) {
  py::gil_scoped_release released;
  auto start = std::chrono::steady_clock::now();
  if (threads == 0) {
    calls(group, tensor, n, mode);
  } else {
    std::vector<std::thread> all;
    for (int i = 0; i < threads; i++)
      all.emplace_back([=] {
        if (!kept)
          return calls(group, tensor, n / threads, mode);
        py::gil_scoped_acquire acquired;
        py::gil_scoped_release again;
        calls(group, tensor, n / threads, mode);
      });
    for (auto &t : all)
      t.join();
    n = n / threads * threads;
  }
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start)
             .count() /
         n;
}

PYBIND11_MODULE(dispatch_torch_ext, m) {
  py::module_::import("torch.distributed");
  m.def("run", &run);
  m.def("native", []() -> Group { return c10::make_intrusive<NativeGroup>(); });
}
