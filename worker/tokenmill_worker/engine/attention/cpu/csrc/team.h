// Threads that work together: torch's own, kept standing by for as long as several operations follow one another.
#pragma once

#include <cstdint>
#include <functional>

namespace tokenmill {

// Hands one thread its tasks of a job: those of its own part from the front, then those that others have not come to,
// from behind. Who does a task decides nothing about its result.
class Tasks {
 public:
  virtual bool take(int64_t& task) = 0;

 protected:
  ~Tasks() = default;
};

// Calls body on this thread. Meanwhile the others stand by: a `share` inside costs a look at a line of memory, not
// OpenMP's fork and join, which are done once around it all.
void with_team(const std::function<void()>& body);

// work(tasks) on each thread that finds the time, until all of [0, count) is done.
void share(int64_t count, const std::function<void(Tasks&)>& work);

// body(begin, end) over parts of [0, count); parts have at least `grain` elements.
void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

int64_t num_threads();

}  // namespace tokenmill
