// Convolutions and linear layers (convolutions of one place): forward, by the input, by the weights. The rows of a
// micro-kernel are images, so that all have the same taps, and those on padding are left out.
#pragma once
#include <utility>
#include "plan.hpp"

// out[i] (+)= sum over runs of x[i][run] . w[run], for NB images and NV vectors of outputs
template <class T, int NB, int NV>
static void products(const T* x, size_t xs, const T* w, size_t ws, const Run* run, const Run* end, T* out, size_t os,
                     const T* start, bool add) {
  constexpr int n = Vector<T>::lanes;
  vec<T> sum[NB][NV];
  for (int i = 0; i < NB; i++) for (int j = 0; j < NV; j++)
    sum[i][j] = add ? load(out + i * os + j * n) : start ? load(start + j * n) : vec<T>{};
  for (; run != end; ++run) {
    const T* xp = x + run->x;
    const T* wp = w + run->w;
    for (int c = 0; c < run->n; c++, wp += ws) {
      vec<T> weight[NV];
      for (int j = 0; j < NV; j++) weight[j] = load(wp + j * n);
      #pragma GCC unroll 12
      for (int i = 0; i < NB; i++) {
        const T value = xp[i * xs + c];
        #pragma GCC unroll 2
        for (int j = 0; j < NV; j++) sum[i][j] += value * weight[j];
      }
    }
  }
  for (int i = 0; i < NB; i++) for (int j = 0; j < NV; j++) store(out + i * os + j * n, sum[i][j]);
}

template <class T> using Products = void (*)(const T*, size_t, const T*, size_t, const Run*, const Run*, T*, size_t,
                                             const T*, bool);
template <class T, int NV, int... NB>
static Products<T> products_of(int rows, std::integer_sequence<int, NB...>) {
  constexpr Products<T> all[] = {products<T, NB + 1, NV>...};
  return all[rows - 1];
}

// The map (N, places of the table, ws) of x (N, *, xs numbers an image); start: a vector to begin with, or null.
template <class T>
static void convolve(const T* x, size_t xs, const T* w, int ws, const Table& table, T* out, int N, const T* start,
                     bool add) {
  if (!N) return;
  constexpr int n = Vector<T>::lanes;
  const int places = (int)table.start.size() - 1, blocks = (N + ROWS - 1) / ROWS;
  const size_t os = (size_t)places * ws;
  for (int h = 0; h < ws;) {
    const int vectors = ws - h >= 2 * n ? 2 : 1;
    const auto by = [&](int rows) {
      const std::make_integer_sequence<int, ROWS> all{};
      return vectors == 2 ? products_of<T, 2>(rows, all) : products_of<T, 1>(rows, all);
    };
    const int few = N / blocks, more = N % blocks;  // rows of a block; so many blocks have one more
    const Products<T> of_few = few ? by(few) : nullptr, of_more = more ? by(few + 1) : nullptr;
    for (int p = 0; p < places; p++) {
      const Run* run = table.runs.data() + table.start[p];
      const Run* end = table.runs.data() + table.start[p + 1];
      T* to = out + (size_t)p * ws + h;
      const T* from = x;
      for (int block = 0; block < blocks; block++) {
        const int rows = few + (block < more);
        (block < more ? of_more : of_few)(from, xs, w + h, ws, run, end, to, os, start ? start + h : nullptr, add);
        from += rows * xs;
        to += rows * os;
      }
    }
    h += vectors * n;
  }
}

// dw[r] += sum over images and places of x[place + r] g[place], for RB rows of weights and NV vectors of outputs
template <class T, int RB, int NV>
static void outer(const T* x, size_t xs, const T* g, size_t gs, int images, const int32_t* places, int count, T* dw,
                  size_t ws) {
  constexpr int n = Vector<T>::lanes;
  vec<T> sum[RB][NV] = {};
  for (int m = 0; m < images; m++, x += xs, g += gs) for (int k = 0; k < count; k++) {
    const T* xp = x + places[2 * k];
    const T* gp = g + places[2 * k + 1];
    vec<T> gradient[NV];
    for (int j = 0; j < NV; j++) gradient[j] = load(gp + j * n);
    #pragma GCC unroll 12
    for (int i = 0; i < RB; i++) {
      const T value = xp[i];
      #pragma GCC unroll 2
      for (int j = 0; j < NV; j++) sum[i][j] += value * gradient[j];
    }
  }
  for (int i = 0; i < RB; i++) for (int j = 0; j < NV; j++)
    store(dw + i * ws + j * n, load(dw + i * ws + j * n) + sum[i][j]);
}

template <class T> using Outer = void (*)(const T*, size_t, const T*, size_t, int, const int32_t*, int, T*, size_t);
template <class T, int NV, int... RB> static Outer<T> outer_of(int rows, std::integer_sequence<int, RB...>) {
  constexpr Outer<T> all[] = {outer<T, RB + 1, NV>...};
  return all[rows - 1];
}

// Adds the gradient in the weights to dw.
template <class T> static void by_weights(const Op& op, const T* x, const T* g, T* dw, int N) {
  constexpr int n = Vector<T>::lanes;
  const size_t xs = op.in.size(), gs = op.out.size();
  const int ws = op.out.stride, places = op.out.h * op.out.w;
  // sums of a few hundred: what is multiplied stays in the cache, and rounding does not add up
  const int at_once = std::max(1, 192 / places);
  const std::make_integer_sequence<int, ROWS> all{};
  for (int m = 0; m < N; m += at_once) {
    const int images = std::min(at_once, N - m);
    for (const Group& group : op.groups) {
      const int blocks = (group.rows + ROWS - 1) / ROWS;
      for (int h = 0; h < ws;) {
        const int vectors = ws - h >= 2 * n ? 2 : 1;
        for (int block = 0, r = 0; block < blocks; block++) {
          const int rows = group.rows / blocks + (block < group.rows % blocks);
          (vectors == 2 ? outer_of<T, 2>(rows, all) : outer_of<T, 1>(rows, all))(
              x + m * xs + r, xs, g + m * gs + h, gs, images, group.places.data(), (int)group.places.size() / 2,
              dw + group.w + (size_t)r * ws + h, ws);
          r += rows;
        }
        h += vectors * n;
      }
    }
  }
}

// w (taps, inputs, outputs) -> (taps, outputs, inputs), for the gradient in the input
template <class T> static void transpose(const Parameter& p, const T* w, T* to) {
  const int is = padded<T>(p.inputs);
  for (int t = 0; t < p.taps; t++) for (int o = 0; o < p.outputs; o++) {
    T* row = to + ((size_t)t * p.outputs + o) * is;
    for (int i = 0; i < p.inputs; i++) row[i] = w[((size_t)t * p.inputs + i) * p.stride + o];
    for (int i = p.inputs; i < is; i++) row[i] = 0;
  }
}
template <class T> static size_t transposed_size(const Parameter& p) {
  return (size_t)p.taps * p.outputs * padded<T>(p.inputs);
}
