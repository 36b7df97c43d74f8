// The loss of one task and its first two derivatives in the outputs.
#pragma once
#include <vector>
#include "job.hpp"
#include "plan.hpp"

struct CallbackFailed {};

template <class T> struct Loss {
  const Job& job;
  const Map& out;
  int features, stride;
  mutable std::vector<T> compact;

  Loss(const Job& job, const Map& out) : job(job), out(out), features(out.c), stride(out.stride) {}

  // the gradient at `outputs` of N rows goes to g; `kept` (N * stride) holds what the tangent needs
  void gradient(int64_t task, const T* outputs, int N, T* g, T* kept) const {
    std::fill(g, g + (size_t)N * stride, T(0));
    if (job.loss == CALLED_BACK) return call(task, 0, outputs, nullptr, N, g);
    if (job.loss == SQUARED_ERROR) {
      const T* y = (const T*)job.targets + (size_t)task * N * features;
      const T factor = 2 / (job.is_mean ? (double)N * features : 1);
      for (int i = 0; i < N; i++) for (int c = 0; c < features; c++)
        g[i * stride + c] = factor * (outputs[i * stride + c] - y[i * features + c]);
      return;
    }
    const int64_t* y = (const int64_t*)job.targets + (size_t)task * N;
    const double denominator = denominator_of(y, N);
    for (int i = 0; i < N; i++) {
      if (y[i] == job.ignore) continue;
      const T* z = outputs + (size_t)i * stride;
      T* p = kept + (size_t)i * stride;
      double most = z[0], sum = 0, total = 0;
      for (int c = 0; c < features; c++) most = std::max(most, (double)z[c]);
      for (int c = 0; c < features; c++) sum += std::exp(z[c] - most);
      for (int c = 0; c < features; c++) total += wanted(y[i], c);
      for (int c = 0; c < features; c++) {
        const double share = std::exp(z[c] - most) / sum;
        p[c] = share;
        g[i * stride + c] = (share * total - wanted(y[i], c)) / denominator;
      }
    }
  }

  // the tangent of that gradient, for tangents `t` of the outputs
  void tangent(int64_t task, const T* outputs, const T* t, int N, const T* kept, T* gt) const {
    std::fill(gt, gt + (size_t)N * stride, T(0));
    if (job.loss == CALLED_BACK) return call(task, 1, outputs, t, N, gt);
    if (job.loss == SQUARED_ERROR) {
      const T factor = 2 / (job.is_mean ? (double)N * features : 1);
      for (int i = 0; i < N; i++) for (int c = 0; c < features; c++) gt[i * stride + c] = factor * t[i * stride + c];
      return;
    }
    const int64_t* y = (const int64_t*)job.targets + (size_t)task * N;
    const double denominator = denominator_of(y, N);
    for (int i = 0; i < N; i++) {
      if (y[i] == job.ignore) continue;
      const T *p = kept + (size_t)i * stride, *ti = t + (size_t)i * stride;
      double mean = 0, total = 0;
      for (int c = 0; c < features; c++) {
        mean += (double)p[c] * ti[c];
        total += wanted(y[i], c);
      }
      for (int c = 0; c < features; c++) gt[i * stride + c] = total * p[c] * (ti[c] - mean) / denominator;
    }
  }

 private:
  double weight(int64_t c) const { return job.class_weights ? (double)((const T*)job.class_weights)[c] : 1.0; }
  double wanted(int64_t y, int c) const {
    return (y == c ? (1 - job.smoothing) * weight(y) : 0) + job.smoothing / features * weight(c);
  }
  double denominator_of(const int64_t* y, int N) const {
    if (!job.is_mean) return 1;
    double sum = 0;
    for (int i = 0; i < N; i++) sum += y[i] == job.ignore ? 0 : weight(y[i]);
    return sum;
  }
  void call(int64_t task, int64_t what, const T* outputs, const T* direction, int N, T* result) const {
    const size_t n = (size_t)N * features;
    compact.resize(3 * n);
    const auto pack = [&](const T* from, T* to) {
      for (int i = 0; i < N; i++) for (int c = 0; c < features; c++) to[i * features + c] = from[i * stride + c];
      return to;
    };
    T* answer = compact.data() + 2 * n;
    const T* at = pack(outputs, compact.data());
    const T* along = direction ? pack(direction, compact.data() + n) : nullptr;
    if (job.callback(task, what, at, along, answer)) throw CallbackFailed();
    for (int i = 0; i < N; i++) for (int c = 0; c < features; c++) result[i * stride + c] = answer[i * features + c];
  }
};
