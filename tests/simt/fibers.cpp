#include "fibers.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdlib>
#include <vector>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {
namespace {

constexpr size_t stack_bytes = 64 << 10, guard_bytes = 4 << 10;

struct Fiber {
  ucontext_t context;
  bool made;
};

Fiber fibers[most_threads];
std::vector<int> idle;
ucontext_t host;
void (*start)();

// The stacks of all fibers, each with a page below it that nobody may touch.
char* stacks() {
  static char* const all = [] {
    void* const memory =
        mmap(nullptr, most_threads * stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) abort();
    for (int k = 0; k < most_threads; ++k)
      mprotect(static_cast<char*>(memory) + k * stack_bytes, guard_bytes, PROT_NONE);
    return static_cast<char*>(memory);
  }();
  return all;
}

char* stack(int fiber) { return stacks() + fiber * stack_bytes + guard_bytes; }

}  // namespace

// AddressSanitizer has to know which stack is in use.
#if defined(__SANITIZE_ADDRESS__)
static const void* host_stack;
static size_t host_stack_bytes;

static void change(ucontext_t& from, ucontext_t& to, const void* bottom, size_t bytes) {
  void* kept;
  __sanitizer_start_switch_fiber(&kept, bottom, bytes);
  swapcontext(&from, &to);
  __sanitizer_finish_switch_fiber(kept, nullptr, nullptr);
}
void to_fiber(int fiber) { change(host, fibers[fiber].context, stack(fiber), stack_bytes - guard_bytes); }
void to_host(int fiber) { change(fibers[fiber].context, host, host_stack, host_stack_bytes); }
void arrive_on_new_stack() { __sanitizer_finish_switch_fiber(nullptr, &host_stack, &host_stack_bytes); }
#else
void to_fiber(int fiber) { swapcontext(&host, &fibers[fiber].context); }
void to_host(int fiber) { swapcontext(&fibers[fiber].context, &host); }
void arrive_on_new_stack() {}
#endif

void prepare_fibers(void (*live)()) {
  start = live;
  if (idle.size() == most_threads) return;
  idle.clear();  // the first launch, or the last one left threads in the middle of a kernel
  for (int k = 0; k < most_threads; ++k) fibers[k].made = false, idle.push_back(k);
}

int take_fiber() {
  const int fiber = idle.back();
  idle.pop_back();
  if (!fibers[fiber].made) {
    ucontext_t& context = fibers[fiber].context;
    getcontext(&context);
    context.uc_stack.ss_sp = stack(fiber);
    context.uc_stack.ss_size = stack_bytes - guard_bytes;
    makecontext(&context, start, 0);
    fibers[fiber].made = true;
  }
  return fiber;
}

void leave_fiber(int fiber) { idle.push_back(fiber); }

bool on_a_stack(const void* address) {
  return size_t(static_cast<const char*>(address) - stacks()) < most_threads * stack_bytes;
}

}  // namespace simt
