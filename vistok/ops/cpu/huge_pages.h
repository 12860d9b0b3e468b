// Large results on large pages: a fresh result of tens of megabytes costs more in page faults than in copying.
#pragma once

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

// Ask for large pages under the untouched memory [start, start + bytes); where the system has none, nothing changes.
inline void prefer_huge_pages(void* start, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t page = 2 << 20;
    // Smaller results mostly get memory that was used before.
    if (bytes < 4 << 20) return;
    const uintptr_t first = (reinterpret_cast<uintptr_t>(start) + page - 1) / page * page;
    const uintptr_t last = (reinterpret_cast<uintptr_t>(start) + uintptr_t(bytes)) / page * page;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
    (void)start, (void)bytes;
#endif
}
