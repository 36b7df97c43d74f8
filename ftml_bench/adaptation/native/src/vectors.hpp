// Vectors of the machine, by the extension that GCC and Clang share: one source for SSE2, AVX2, AVX-512 and NEON.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define ROWS 12  // of a micro-kernel: two accumulators each, out of 32 registers
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#define ROWS 6   // out of 16
#elif defined(__aarch64__)
#define VECTOR_BYTES 16
#define ROWS 12
#else
#define VECTOR_BYTES 16
#define ROWS 6
#endif

template <class T> struct Vector {
  typedef T type __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(T)), may_alias));
  static constexpr int lanes = VECTOR_BYTES / sizeof(T);
};
template <class T> using vec = typename Vector<T>::type;

template <class T> static inline vec<T> load(const T* p) { return *(const vec<T>*)p; }
template <class T> static inline void store(T* p, vec<T> v) { *(vec<T>*)p = v; }
template <class T> static inline int padded(int channels) {
  constexpr int n = Vector<T>::lanes;
  return (channels + n - 1) / n * n;
}

// Memory that is not filled: what is read has been written before.
template <class T> struct Buffer {
  T* data = nullptr;
  Buffer() = default;
  explicit Buffer(size_t count) {
    size_t bytes = (count * sizeof(T) + 63) / 64 * 64 + 64;
    data = (T*)std::aligned_alloc(64, bytes);
    if (!data) throw std::bad_alloc();
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(Buffer&& other) { std::swap(data, other.data); return *this; }
  ~Buffer() { std::free(data); }
  operator T*() const { return data; }
};
