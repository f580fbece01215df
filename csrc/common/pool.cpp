// A caller posts a job and runs its tasks; threads of the pool that see it take tasks too. Nobody
// has to come: on a busy machine a job ends without a thread that got no processor, which a barrier
// would wait for. Threads that find nothing look for some microseconds, the time between two
// operations of a forward, then sleep.
//
// The jobs' memory stays. `open` is how many threads may still join; who looks is counted in
// `inside` before, so that a caller that has closed its job leaves when nobody is inside.
#include "common/pool.h"

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

namespace bf {
namespace {

constexpr int kJobs = 32;     // callers at a time that get help
constexpr int kLooks = 2000;  // before a thread sleeps: about 50 us

void pause_thread() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

struct alignas(64) Job {
  std::atomic<bool> taken{false};
  std::atomic<int> open{0}, inside{0}, joined{0};
  void (*body)(void*, long, int);
  void* of;
  long tasks;
  alignas(64) std::atomic<long> next{0};

  void work(int thread) {
    for (long i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) body(of, i, thread);
  }

  // Whether this thread joined the job.
  bool help() {
    if (open.load(std::memory_order_relaxed) <= 0) return false;
    inside.fetch_add(1);
    int left = open.load();
    while (left > 0 && !open.compare_exchange_weak(left, left - 1)) {
    }
    if (left > 0) work(joined.fetch_add(1, std::memory_order_relaxed) + 1);
    inside.fetch_sub(1);
    return left > 0;
  }
};

struct Pool {
  Job jobs[kJobs];
  std::atomic<long> posted{0};  // jobs so far
  std::atomic<int> asleep{0}, count{0};
  std::mutex mutex;
  std::condition_variable wake;

  void run_thread() {
    for (;;) {
      const long seen = posted.load();
      bool helped = false;
      for (Job& job : jobs) helped |= job.help();
      for (int i = 0; !helped && i < kLooks && posted.load() == seen; ++i) pause_thread();
      if (helped || posted.load() != seen) continue;
      std::unique_lock<std::mutex> lock(mutex);
      asleep.fetch_add(1);
      wake.wait(lock, [&] { return posted.load() != seen; });
      asleep.fetch_sub(1);
    }
  }

  // Threads get no signals but their own faults'. Where one cannot be made, there are fewer.
  void grow(int wanted) {
    std::lock_guard<std::mutex> lock(mutex);
    sigset_t all, before;
    sigfillset(&all);
    for (const int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) sigdelset(&all, own);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      for (; count.load() < wanted; count.fetch_add(1))
        std::thread([this] { run_thread(); }).detach();
    } catch (const std::system_error&) {
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  Job* take() {
    for (Job& job : jobs) {
      bool free = false;
      if (!job.taken.load(std::memory_order_relaxed) &&
          job.taken.compare_exchange_strong(free, true))
        return &job;
    }
    return nullptr;
  }

  void post(Job& job, int helpers) {
    job.joined.store(0);
    job.next.store(0);
    job.open.store(helpers);
    posted.fetch_add(1);
    if (asleep.load() == 0) return;
    {
      std::lock_guard<std::mutex> lock(mutex);
    }  // nobody is between its last look and its sleep
    wake.notify_all();
  }
};

std::atomic<bool> parallel{false};

// Never destroyed: threads may sleep in it until the process ends. A forked child has no threads of
// its parent's, so it begins with another.
alignas(Pool) char memory[sizeof(Pool)];
Pool* pool = new (memory) Pool;
const int fork_handler = pthread_atfork(nullptr, nullptr, [] { pool = new (memory) Pool; });

}  // namespace

bool ran_in_parallel() { return parallel; }

void run_tasks(int threads, long tasks, void (*body)(void*, long, int), void* of) {
  parallel.store(true, std::memory_order_relaxed);
  if (threads > pool->count.load(std::memory_order_relaxed) + 1) pool->grow(threads - 1);
  Job* job = pool->take();
  if (!job) {
    for (long i = 0; i < tasks; ++i) body(of, i, 0);
    return;
  }
  job->body = body, job->of = of, job->tasks = tasks;
  pool->post(*job, threads - 1);
  job->work(0);
  job->open.store(0);
  for (int looks = 0; job->inside.load() > 0; ++looks)
    looks < kLooks ? pause_thread() : std::this_thread::yield();
  job->taken.store(false);
}

}  // namespace bf
