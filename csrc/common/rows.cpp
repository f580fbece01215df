#include "common/rows.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/check.h"
#include "common/pool.h"

namespace bf {
namespace {

constexpr long kTaskBytes = 1 << 16;

struct Scatter {
  const char* from;
  char* to;
  long count, bytes, rows_a_task;
  std::vector<long> sources;  // of each row; -1: none

  void run(long task) const {
    const long end = std::min(count, (task + 1) * rows_a_task);
    for (long i = task * rows_a_task; i < end; ++i)
      if (sources[i] < 0)
        std::memset(to + i * bytes, 0, bytes);
      else
        std::memcpy(to + i * bytes, from + sources[i] * bytes, bytes);
  }
};

}  // namespace

void scatter_rows(const char* from, const std::int64_t* places, long rows, char* to, long count,
                  long bytes, int threads) {
  if (bytes == 0) return;
  Scatter all{from, to, count, bytes, std::max(1L, kTaskBytes / bytes), {}};
  all.sources.assign(count, -1);
  for (long i = 0; i < rows; ++i) {
    BF_CHECK(places[i] >= 0 && places[i] < count, "a place is no row of the output");
    all.sources[places[i]] = i;
  }
  const long tasks = (count + all.rows_a_task - 1) / all.rows_a_task;
  if (threads <= 1 || tasks <= 1) {
    for (long i = 0; i < tasks; ++i) all.run(i);
    return;
  }
  run_tasks(
      static_cast<int>(std::min<long>(threads, tasks)), tasks,
      [](void* of, long task, int) { static_cast<const Scatter*>(of)->run(task); }, &all);
}

}  // namespace bf
