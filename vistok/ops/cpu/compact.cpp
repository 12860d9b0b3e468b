// Rows of any bytes, copied from the places that a list names; a fill value where it names none.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#include "huge_pages.h"

namespace {

constexpr int64_t kLine = 64;            // bytes of a cache line
constexpr int64_t kPiece = 256;          // bytes
constexpr int64_t kTogether = 8;         // rows that are copied side by side
constexpr int64_t kStreamed = 8 << 20;  // a larger result would only drive other data out of the caches

// Copy whole lines to aligned memory around the caches.
void stream(char* to, const char* from, int64_t bytes) {
#ifdef __AVX__
    for (int64_t i = 0; i < bytes; i += kLine / 2)
        _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i),
                            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i)));
#else
    std::memcpy(to, from, size_t(bytes));
#endif
}

// The same for `count` blocks whose copies lie `apart`, all a piece at a time: each lies in pages of its own, and the
// processor reads several pages at once faster than one after the other.
void stream(char* to, int64_t apart, const char* const* from, int64_t count, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += kPiece)
        for (int64_t k = 0; k < count; ++k) stream(to + k * apart + i, from[k] + i, std::min(kPiece, bytes - i));
}

void finish_streams() {
#ifdef __AVX__
    _mm_sfence();
#endif
}

}  // namespace

// x: slots of items, each of `blocks` blocks of `bytes` bytes, at the strides in bytes. source [rows] in -1 or
// item * slots + slot; fill: one number of `number` bytes, or null for zero -> out [rows, blocks, bytes]. Returns 0, 1 if
// memory ran out, or 2 if a source is not one of `places`.
extern "C" int compact(const char* x, const int64_t* source, const char* fill, char* out, int64_t rows, int64_t places,
                       int64_t slots, int64_t blocks, int64_t bytes, int64_t number, int64_t item_stride,
                       int64_t slot_stride, int64_t block_stride, int64_t threads) try {
    const int64_t row_bytes = blocks * bytes;
    std::vector<char> filled(row_bytes);
    for (int64_t i = 0; fill && i < row_bytes; i += number) std::memcpy(filled.data() + i, fill, size_t(number));
    for (int64_t row = 0; row < rows; ++row)
        if (source[row] < -1 || source[row] >= places) return 2;
    prefer_huge_pages(out, rows * row_bytes);
    const bool streamed =
        rows * row_bytes >= kStreamed && bytes % kLine == 0 && reinterpret_cast<uintptr_t>(out) % kLine == 0;
    const bool even = item_stride == slots * slot_stride;
    const auto place = [&](int64_t row) -> const char* {
        const int64_t from = source[row];
        if (from < 0) return filled.data();
        return x + (even ? from * slot_stride : from / slots * item_stride + from % slots * slot_stride);
    };
#pragma omp parallel num_threads(int(threads))
    {
#pragma omp for schedule(static)
        for (int64_t first = 0; first < rows; first += kTogether) {
            const int64_t count = std::min(kTogether, rows - first);
            const char* from[kTogether];
            for (int64_t k = 0; k < count; ++k) from[k] = place(first + k);
            for (int64_t block = 0; block < blocks; ++block) {
                char* to = out + first * row_bytes + block * bytes;
                if (streamed) stream(to, row_bytes, from, count, bytes);
                for (int64_t k = 0; k < count; ++k) {
                    if (!streamed) std::memcpy(to + k * row_bytes, from[k], size_t(bytes));
                    from[k] += source[first + k] < 0 ? bytes : block_stride;
                }
            }
        }
        if (streamed) finish_streams();
    }
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}
