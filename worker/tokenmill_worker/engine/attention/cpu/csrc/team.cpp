// A job is open while its first thread works on it. Others come in and take tasks; whoever comes too late, because the
// system runs something else on his core, is not waited for.
#include "team.h"

#include <ATen/Parallel.h>
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace tokenmill {
namespace {

constexpr int64_t PARTS = 4;          // of a parallel_for, for each thread
constexpr int PATIENCE = 1 << 14;     // looks before a waiting thread lets others have its core
constexpr size_t LINE = 64;           // bytes that cores hand one another
constexpr uint64_t OPEN = 1u << 16;   // of a team's state; below it the number of those inside, above it the job's number
constexpr uint64_t INSIDE = OPEN - 1;
constexpr uint64_t STOPPED = ~uint64_t{0} << 32;

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class F>
void wait_until(F&& is_so) {
  for (int looks = 0; !is_so(); ++looks) {
    if (looks < PATIENCE) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
}

// Tasks [front, back), the two halves of one word.
class alignas(LINE) Part {
 public:
  void set(int64_t front, int64_t back) { word_.store(pair(front, back), std::memory_order_relaxed); }

  bool take_front(int64_t& task) {
    return change([&](int64_t front, int64_t back) { return task = front, pair(front + 1, back); });
  }

  bool take_back(int64_t& task) {
    return change([&](int64_t front, int64_t back) { return task = back - 1, pair(front, back - 1); });
  }

 private:
  static uint64_t pair(int64_t front, int64_t back) { return static_cast<uint64_t>(front) << 32 | back; }

  template <class F>
  bool change(F&& next) {
    uint64_t word = word_.load(std::memory_order_relaxed);
    for (;;) {
      const auto front = static_cast<int64_t>(word >> 32), back = static_cast<int64_t>(word & UINT32_MAX);
      if (front >= back) return false;
      if (word_.compare_exchange_weak(word, next(front, back), std::memory_order_relaxed)) return true;
    }
  }

  std::atomic<uint64_t> word_{0};
};

class PartedTasks final : public Tasks {
 public:
  PartedTasks(std::vector<Part>& parts, size_t own) : parts_(parts), own_(own) {}

  bool take(int64_t& task) override {
    if (parts_[own_].take_front(task)) return true;
    for (size_t step = 1; step < parts_.size(); ++step) {
      if (parts_[(own_ + step) % parts_.size()].take_back(task)) return true;
    }
    return false;
  }

 private:
  std::vector<Part>& parts_;
  const size_t own_;
};

class AllTasks final : public Tasks {
 public:
  explicit AllTasks(int64_t count) : count_(count) {}
  bool take(int64_t& task) override { return (task = next_++) < count_; }

 private:
  const int64_t count_;
  int64_t next_ = 0;
};

class Team {
 public:
  // Of thread 0 of the team alone; nullptr while it works on a job.
  static thread_local Team* current;

  explicit Team(int num_threads) : parts_(num_threads) {}

  int64_t size() const { return static_cast<int64_t>(parts_.size()); }

  void run(int64_t count, const std::function<void(Tasks&)>& work) {
    for (int64_t index = 0; index < size(); ++index) {
      parts_[index].set(index * count / size(), (index + 1) * count / size());
    }
    work_ = &work;
    state_.store((++number_ * 2 + 1) * OPEN, std::memory_order_release);
    current = nullptr;
    do_tasks(0);
    current = this;
    state_.fetch_and(~OPEN, std::memory_order_relaxed);
    wait_until([&] { return (state_.load(std::memory_order_acquire) & INSIDE) == 0; });
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

  void serve(int thread) {
    uint64_t last = 0;  // the job that this thread has seen
    for (;;) {
      uint64_t state = 0;
      wait_until([&] { return (state = state_.load(std::memory_order_acquire)) / (2 * OPEN) != last; });
      if (state == STOPPED) return;
      last = state / (2 * OPEN);
      if (!enter(state)) continue;
      do_tasks(thread);
      state_.fetch_sub(1, std::memory_order_release);
    }
  }

  void dismiss() { state_.store(STOPPED, std::memory_order_release); }

 private:
  // While it is the same job, and open.
  bool enter(uint64_t state) {
    const uint64_t job = state & ~INSIDE;
    while ((state & OPEN) != 0 && (state & ~INSIDE) == job) {
      if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acquire)) return true;
    }
    return false;
  }

  void do_tasks(int thread) {
    PartedTasks tasks(parts_, thread);
    try {
      (*work_)(tasks);
    } catch (...) {
      const std::lock_guard<std::mutex> guard(failing_);
      error_ = std::current_exception();
    }
  }

  alignas(LINE) std::atomic<uint64_t> state_{0};
  alignas(LINE) uint64_t number_ = 0;
  const std::function<void(Tasks&)>* work_ = nullptr;
  std::vector<Part> parts_;
  std::mutex failing_;
  std::exception_ptr error_;
};

thread_local Team* Team::current = nullptr;

void do_all(int64_t count, const std::function<void(Tasks&)>& work) {
  AllTasks tasks(count);
  work(tasks);
}

}  // namespace

int64_t num_threads() { return Team::current != nullptr ? Team::current->size() : at::get_num_threads(); }

void with_team(const std::function<void()>& body) {
  const int wanted = at::get_num_threads();
  if (Team::current != nullptr || wanted == 1 || at::in_parallel_region()) return body();
  Team team(wanted);
  std::exception_ptr error;
#pragma omp parallel num_threads(wanted)
  if (omp_get_thread_num() > 0) {
    team.serve(omp_get_thread_num());
  } else {
    Team::current = &team;
    try {
      body();
    } catch (...) {
      error = std::current_exception();
    }
    Team::current = nullptr;
    team.dismiss();
  }
  if (error) std::rethrow_exception(error);
}

void share(int64_t count, const std::function<void(Tasks&)>& work) {
  if (count <= 1) return do_all(count, work);
  with_team([&] { Team::current != nullptr ? Team::current->run(count, work) : do_all(count, work); });
}

void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  const int64_t parts = std::min(count / std::max<int64_t>(grain, 1), PARTS * num_threads());
  if (count > 0 && parts <= 1) return body(0, count);
  share(parts, [&](Tasks& tasks) {
    for (int64_t part; tasks.take(part);) body(part * count / parts, (part + 1) * count / parts);
  });
}

}  // namespace tokenmill
