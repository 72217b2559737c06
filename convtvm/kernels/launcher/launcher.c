/* Runs the tasks of a kernel's parallel loop on a few threads that all callers of a process share.

   Linked into every library for several threads, where it takes the place of TVM's own launcher,
   whose threads belong to the caller: they outlive it, do not survive a fork, and are bound to CPUs
   that the caller may not use.

   A launch has no more tasks than the caller has CPUs in its affinity mask, and the workers get that
   mask. One launch at a time has the workers; a caller that meets another one computes alone, which
   is what it would get of the CPUs anyway. So does one that cannot start a thread.

   `scripts/make_launcher` makes launcher.ll of this file, since whoever compiles a library has LLVM
   but perhaps no C compiler. The same launcher.ll serves all of Linux on 64 bits: nothing here may
   depend on the machine. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { SHORTEST_PAUSE = 20000000, LONGEST_PAUSE = 1000000000 };  // nanoseconds
enum { MOST_WORKERS = 1023, MASK_WORDS = 64, WORD = 64, CHECKS = 32, LAUNCHES_BEFORE_RETRY = 1000 };

/* What a worker is doing. Only the caller that holds the pool posts and takes back. */
enum { IDLE, ASLEEP, POSTED, RUNNING, AWAITED };

/* TVM's calling convention of a parallel loop: the body is a task that knows its number. */
typedef struct {
  void *sync_handle;  // for barriers, which no kernel has
  int32_t num_task;
} ParallelGroup;
typedef int (*Task)(int number, ParallelGroup *group, void *data);
typedef int Launch(Task task, void *data, int tasks);
typedef int LaunchShared(int threads, Task task, void *data);

typedef struct {
  _Alignas(128) _Atomic int state;
  int number, failed, avoided;
  void *error;
  struct Pool *pool;
  pthread_t thread;
  sem_t wake;
} Worker;

/* All zeros is a pool without threads, so a fork, which wipes the memory, leaves one. */
typedef struct Pool {
  _Alignas(128) _Atomic int busy;
  int workers, cpus, refused;
  pid_t process;  // 0 where the memory is wiped
  int64_t spin;   // nanoseconds
  unsigned long mask[MASK_WORDS];
  Task task;
  void *data;
  ParallelGroup group;
  sem_t done;
  Worker worker[MOST_WORKERS];
} Pool;

extern const int32_t convtvm_threads;  // the number that the library is compiled for
extern void convtvm_relax(void);       // tells the CPU that this thread only waits

/* tvm_ffi's error of the calling thread, taken and set. */
extern void TVMFFIErrorMoveFromRaised(void **error) __attribute__((weak));
extern void TVMFFIErrorSetRaised(void *error) __attribute__((weak));

static _Atomic(Pool *) current;

/* The OpenMP of another library, as the run time has found it, for launches on its threads. Every
   thread that calls it has a team of its own there. */
typedef struct {
  LaunchShared *launch;  // launch_on_team
  LaunchShared *own;     // what runs where the team cannot
  /* GOMP_parallel; NULL in a child after a fork, whose team has no threads and waits for them. */
  void (*parallel)(void (*part)(void *), void *loop, unsigned threads, unsigned flags);
  int (*number)(void), (*size)(void);  // of the calling thread in its team, of that team
  int (*inside)(void);                 // whether the caller is one of the threads of a loop
  int (*limit)(void);                  // threads that a loop of this caller may have
} Team;

static int64_t nanoseconds(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* Wait until `state` leaves `from`, at most `spin` nanoseconds; whether it has. */
static int left(_Atomic int *state, int from, int64_t spin) {
  int64_t end = 0;
  for (;;) {
    for (int i = 0; i < CHECKS; ++i) {
      if (atomic_load_explicit(state, memory_order_acquire) != from) return 1;
      convtvm_relax();
    }
    int64_t now = nanoseconds();
    if (!end) end = now + spin;
    if (now >= end) return 0;
  }
}

static int is(_Atomic int *state, int expected, int next) {
  return atomic_compare_exchange_strong(state, &expected, next);
}

static void *work(void *argument) {
  Worker *self = argument;
  Pool *pool = self->pool;
  for (;;) {
    if (!left(&self->state, IDLE, pool->spin) && is(&self->state, IDLE, ASLEEP)) {
      while (atomic_load(&self->state) == ASLEEP) sem_wait(&self->wake);
    }
    if (!is(&self->state, POSTED, RUNNING)) continue;
    self->failed = pool->task(self->number, &pool->group, pool->data);
    if (self->failed && TVMFFIErrorMoveFromRaised) TVMFFIErrorMoveFromRaised(&self->error);
    if (atomic_exchange(&self->state, IDLE) == AWAITED) sem_post(&pool->done);
  }
  return NULL;
}

static Pool *make(Pool *old) {
  Pool *pool = mmap(NULL, sizeof *pool, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pool == MAP_FAILED) return NULL;
  if (madvise(pool, sizeof *pool, MADV_WIPEONFORK)) pool->process = getpid();
  if (atomic_compare_exchange_strong(&current, &old, pool)) return pool;
  munmap(pool, sizeof *pool);
  return old;
}

static Pool *find(void) {
  Pool *pool = atomic_load_explicit(&current, memory_order_acquire);
  if (pool && (!pool->process || pool->process == getpid())) return pool;
  return make(pool);
}

/* Keep this code loaded: threads are about to run it. */
static int stays(void) {
  Dl_info here;
  if (!dladdr((void *)stays, &here)) return 0;
  return dlopen(here.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE) != NULL;
}

/* Nanoseconds, of a variable that says microseconds. */
static int64_t duration(const char *variable, long long us) {
  const char *text = getenv(variable);
  if (text && *text) us = atoll(text);
  return 1000 * (us < 0 ? 0 : us > 1000000 ? 1000000 : us);
}

/* One more worker, with the caller's affinity mask and no signals; whether there is one. */
static int start(Pool *pool) {
  if (!pool->workers) {
    if (!stays() || sem_init(&pool->done, 0, 0)) return 0;
    pool->spin = duration("CONVTVM_SPIN_US", 200);
  }
  Worker *worker = &pool->worker[pool->workers];
  memset(worker, 0, sizeof *worker);
  worker->pool = pool;
  worker->number = pool->workers + 1;
  if (sem_init(&worker->wake, 0, 0)) return 0;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int refused = pthread_create(&worker->thread, NULL, work, worker);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (refused) return 0;
  pthread_setname_np(worker->thread, "convtvm");
  pthread_detach(worker->thread);
  ++pool->workers;
  return 1;
}

static int count(const unsigned long *mask) {
  int cpus = 0;
  for (int i = 0; i < MASK_WORDS; ++i) cpus += __builtin_popcountl(mask[i]);
  return cpus;
}

static int smaller(int one, int other) { return one < other ? one : other; }

/* Give the workers the caller's mask. */
static void bind(Pool *pool, const unsigned long *mask) {
  memcpy(pool->mask, mask, sizeof pool->mask);
  pool->cpus = count(mask);
  for (int i = 0; i < pool->workers; ++i) {
    pthread_setaffinity_np(pool->worker[i].thread, sizeof pool->mask, (const cpu_set_t *)mask);
    pool->worker[i].avoided = 0;
  }
}

/* Wake a worker up on another CPU than the caller's. Left to itself, the kernel likes to wake it on
   this one, where it would wait for the caller, which waits for it. */
static void wake(Pool *pool, Worker *worker) {
  int cpu = sched_getcpu();
  if (cpu >= 0 && cpu < MASK_WORDS * WORD && worker->avoided != cpu + 1) {
    unsigned long mask[MASK_WORDS];
    memcpy(mask, pool->mask, sizeof mask);
    mask[cpu / WORD] &= ~(1UL << cpu % WORD);
    pthread_setaffinity_np(worker->thread, sizeof mask, (const cpu_set_t *)mask);
    worker->avoided = cpu + 1;
  }
  sem_post(&worker->wake);
}

/* The tasks that a loop for so many threads gets: the caller's and those of ready workers. */
static int ready(Pool *pool, int threads) {
  unsigned long mask[MASK_WORDS];
  if (sched_getaffinity(0, sizeof mask, (cpu_set_t *)mask)) return 1;
  if (memcmp(mask, pool->mask, sizeof mask)) bind(pool, mask);
  threads = smaller(smaller(threads, pool->cpus), MOST_WORKERS + 1);
  while (pool->workers + 1 < threads) {
    if (pool->refused) {
      --pool->refused;
      break;
    }
    if (!start(pool)) pool->refused = LAUNCHES_BEFORE_RETRY;
  }
  return smaller(threads, pool->workers + 1);
}

/* Wait for a worker that has begun; whether its task failed. */
static int finished(Pool *pool, Worker *worker) {
  if (!left(&worker->state, RUNNING, pool->spin) && is(&worker->state, RUNNING, AWAITED)) {
    while (sem_wait(&pool->done)) {
    }
  }
  if (!worker->failed) return 0;
  if (worker->error && TVMFFIErrorSetRaised) TVMFFIErrorSetRaised(worker->error);
  worker->error = NULL;
  return worker->failed;
}

static int run(Pool *pool, int tasks, Task task, void *data) {
  Worker *workers = pool->worker;
  pool->task = task;
  pool->data = data;
  pool->group.num_task = tasks;
  for (int i = 0; i < tasks - 1; ++i) {
    workers[i].failed = 0;
    if (atomic_exchange(&workers[i].state, POSTED) == ASLEEP) wake(pool, &workers[i]);
  }
  int failed = task(0, &pool->group, data);
  /* What nobody has begun is done here: a core may be busy, a thread slow to wake. */
  for (int i = tasks - 2; i >= 0; --i) {
    if (is(&workers[i].state, POSTED, IDLE)) failed |= task(i + 1, &pool->group, data);
  }
  for (int i = 0; i < tasks - 1; ++i) failed |= finished(pool, &workers[i]);
  return failed;
}

static int alone(Task task, void *data) {
  ParallelGroup group = {NULL, 1};
  return task(0, &group, data);
}

static int launch_shared(int threads, Task task, void *data) {
  Pool *pool = threads > 1 ? find() : NULL;
  int failed = 0, tasks = 1;
  if (pool && !atomic_load_explicit(&pool->busy, memory_order_relaxed) &&
      !atomic_exchange_explicit(&pool->busy, 1, memory_order_acquire)) {
    tasks = ready(pool, threads);
    if (tasks > 1) failed = run(pool, tasks, task, data);
    atomic_store_explicit(&pool->busy, 0, memory_order_release);
  }
  return tasks > 1 ? failed : alone(task, data);
}

static int launch_on_team(int threads, Task task, void *data);
Team convtvm_team = {.launch = launch_on_team, .own = launch_shared};

/* A loop on a team. The team may be smaller than the loop was meant for. */
typedef struct {
  Task task;
  void *data, *error;
  int64_t done;  // when the caller had nothing left to do
  int tasks, taken_over;
  _Atomic int failed;
  _Atomic char begun[MOST_WORKERS + 1];
} Loop;

/* Do a task, unless somebody has begun it; whether it was done here. */
static int begin(Loop *loop, int number, ParallelGroup *group) {
  if (atomic_exchange(&loop->begun[number], 1)) return 0;
  int none = 0, failed = loop->task(number, group, loop->data);
  if (failed && atomic_compare_exchange_strong(&loop->failed, &none, failed) &&
      TVMFFIErrorMoveFromRaised) {
    TVMFFIErrorMoveFromRaised(&loop->error);
  }
  return 1;
}

/* What each thread of a team does: its own task; the caller then those that nobody has begun. */
static void take_part(void *argument) {
  Loop *loop = argument;
  int number = convtvm_team.number();
  ParallelGroup group = {NULL, smaller(loop->tasks, convtvm_team.size())};
  if (number < group.num_task) begin(loop, number, &group);
  if (number) return;
  for (int i = group.num_task - 1; i > 0; --i) loop->taken_over += begin(loop, i, &group);
  loop->done = nanoseconds();
}

/* OpenMP waits for all threads of a team, and on a busy machine one that had nothing to do may wait
   long for a core. After that workers of our own are used for a while, each time for longer. */
static _Atomic int64_t avoided, avoid_for;  // until when, how long the last time: nanoseconds

static void judge(const Loop *loop) {
  static _Atomic int64_t patience;
  int64_t now = nanoseconds();
  if (!patience) patience = 1 + duration("CONVTVM_TEAM_US", 500);
  if (!loop->taken_over || now - loop->done < patience) {
    if (avoid_for) avoid_for = 0;
    return;
  }
  int64_t next = 2 * avoid_for;
  avoid_for = next < SHORTEST_PAUSE ? SHORTEST_PAUSE : next > LONGEST_PAUSE ? LONGEST_PAUSE : next;
  avoided = now + avoid_for;
}

static int run_on_team(int tasks, Task task, void *data) {
  Loop loop;
  loop.task = task;
  loop.data = data;
  loop.error = NULL;
  loop.tasks = tasks;
  loop.taken_over = loop.failed = 0;
  memset((void *)loop.begun, 0, tasks);
  /* As many threads as the other library's loops have: a team of another size is made anew. */
  convtvm_team.parallel(take_part, &loop, 0, 0);
  judge(&loop);
  if (loop.error && TVMFFIErrorSetRaised) TVMFFIErrorSetRaised(loop.error);
  return loop.failed;
}

/* Several callers' teams are many threads on the same CPUs: who finds these taken computes alone. */
static int launch_on_team(int threads, Task task, void *data) {
  static _Atomic int taken;
  threads = smaller(threads, convtvm_team.limit());
  if (threads < 2 || convtvm_team.inside()) return alone(task, data);
  if (!convtvm_team.parallel || nanoseconds() < avoided) {
    return convtvm_team.own(threads, task, data);
  }
  unsigned long mask[MASK_WORDS];
  if (sched_getaffinity(0, sizeof mask, (cpu_set_t *)mask)) return alone(task, data);
  int cpus = count(mask);
  threads = smaller(threads, smaller(cpus, MOST_WORKERS + 1));
  int room = cpus - atomic_fetch_add(&taken, threads);
  int tasks = room < 1 ? 1 : smaller(threads, room);
  atomic_fetch_sub(&taken, threads - tasks);
  int failed = tasks > 1 ? run_on_team(tasks, task, data) : alone(task, data);
  atomic_fetch_sub(&taken, tasks);
  return failed;
}

/* The run time may let several libraries use the launcher of one, and change the threads. */
struct {
  LaunchShared *launch;
  int32_t threads;
} convtvm_launcher = {launch_shared, 0};

static int launch(Task task, void *data, int tasks) {
  int32_t threads = convtvm_launcher.threads ? convtvm_launcher.threads : convtvm_threads;
  return convtvm_launcher.launch(tasks > 0 ? tasks : threads, task, data);
}

/* Kernels call what is here. It is hidden, so TVM does not find it and put its own launcher in. */
__attribute__((visibility("hidden"))) Launch *__TVMBackendParallelLaunch = launch;
