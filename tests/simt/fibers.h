// Stacks for the threads of a block, and switches between them and the host's.
#pragma once
#include <cstddef>

namespace simt {

constexpr int most_threads = 1024;  // of a block, and so the number of fibers

// Before a launch: every fiber is idle, and starts with `live`, which never returns.
void prepare_fibers(void (*live)());

int take_fiber();
void leave_fiber(int fiber);

void to_fiber(int fiber);    // returns when the fiber goes
void to_host(int fiber);     // from this fiber; returns when it is gone on with
void arrive_on_new_stack();  // what `live` begins with

bool on_a_stack(const void* address);

}  // namespace simt
