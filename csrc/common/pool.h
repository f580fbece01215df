// The threads that help a caller with its tasks; compiled once, for every instruction set.
#pragma once

namespace bf {

// Calls body(of, task, thread) for each task from 0, the lowest first, thread < threads; the caller
// is thread 0. It returns when all have run, and waits for no thread that did not take one.
void run_tasks(int threads, long tasks, void (*body)(void* of, long task, int thread), void* of);

// Asked after a fork: whether there were several threads.
bool ran_in_parallel();

}  // namespace bf
