// Counts what is allocated, for a process that has this library preloaded: its peak does not depend on what the
// allocator keeps, as the size of the process does. Allocations are glibc's own, under names that it exports.
#include <errno.h>
#include <malloc.h>

#include <atomic>
#include <cstddef>

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void __libc_free(void*);
}

static std::atomic<bool> counting{false};
static std::atomic<long> held{0}, most{0};

static void count(long bytes) {
  long now = held += bytes, before = most;
  while (now > before && !most.compare_exchange_weak(before, now)) {
  }
}

static void* counted(void* block) {
  if (counting && block) count(long(malloc_usable_size(block)));
  return block;
}

extern "C" {
// Bytes are those beyond what is held when counting begins.
void count_allocations() {
  held = most = 0;
  counting = true;
}

long most_allocated() {
  counting = false;
  return most;
}

void* malloc(size_t size) { return counted(__libc_malloc(size)); }
void* calloc(size_t count, size_t size) { return counted(__libc_calloc(count, size)); }
void* memalign(size_t alignment, size_t size) { return counted(__libc_memalign(alignment, size)); }
void* aligned_alloc(size_t alignment, size_t size) { return counted(__libc_memalign(alignment, size)); }

int posix_memalign(void** block, size_t alignment, size_t size) {
  if (alignment % sizeof(void*) || !alignment || alignment & (alignment - 1)) return EINVAL;
  void* made = counted(__libc_memalign(alignment, size));
  if (!made) return ENOMEM;
  *block = made;
  return 0;
}

void free(void* block) {
  if (counting && block) count(-long(malloc_usable_size(block)));
  __libc_free(block);
}

void* realloc(void* block, size_t size) {
  const long before = counting && block ? long(malloc_usable_size(block)) : 0;
  void* made = __libc_realloc(block, size);
  if (counting) count((made ? long(malloc_usable_size(made)) : 0) - (made || !size ? before : 0));
  return made;
}
}
