// Passes over a network for the rows of one task: forward, backward, and their tangents, of which the second gives the
// product of the Hessian and a direction.
#pragma once
#include "convolution.hpp"
#include "layers.hpp"
#include "norm.hpp"

// Where a pass over N rows keeps what it finds, on a tape of `size` numbers.
template <class T> struct Layout {
  int N;
  std::vector<size_t> out, gradient, other;  // of each operation: outputs, gradient in them, what else it keeps
  size_t loss, weights, size = 0, largest = 0, scratch = 0;

  Layout(const Plan<T>& plan, int N, bool clips) : N(N) {
    largest = N * plan.in.size();
    for (size_t l = 0; l < plan.ops.size(); l++) {
      const Op& op = plan.ops[l];
      const size_t numbers = N * op.out.size();
      largest = std::max(largest, numbers);
      out.push_back(take(numbers));
      gradient.push_back(take(numbers));
      size_t more = 0;
      if (op.kind == CONVOLUTION) more = transposed_size<T>(plan.parameters[op.weight]);
      if (op.kind == NORM) more = 4 * op.out.stride;
      if (op.kind == MAX_POOL) more = numbers;  // places of 32 bits
      if (op.kind == ARGMAX) more = N * op.in.size();
      other.push_back(take(more));
      scratch = std::max<size_t>({scratch, more, 8 * (size_t)op.out.stride});
    }
    loss = take(N * plan.out().size());
    weights = take(clips ? plan.weights : 0);
  }

 private:
  size_t take(size_t numbers) {
    const size_t at = size;
    size += (numbers + 15) / 16 * 16;
    return at;
  }
};

template <class T> struct Passes {
  const Plan<T>& plan;
  Buffer<T> scratch, tangents, ping, pong, no_tangent;
  Buffer<double> totals;

  Passes(const Plan<T>& plan, const Layout<T>& steps, const Layout<T>& query, bool second_order) : plan(plan) {
    int widest = 1;
    for (const Op& op : plan.ops) widest = std::max(widest, op.out.stride);
    totals = Buffer<double>(3 * widest);
    scratch = Buffer<T>(std::max(steps.scratch, query.scratch));
    if (!second_order) return;
    tangents = Buffer<T>(steps.size);
    ping = Buffer<T>(steps.largest);
    pong = Buffer<T>(steps.largest);
    no_tangent = Buffer<T>(steps.N * plan.in.size());
  }

  const T* outputs(const Layout<T>& at, const T* tape) const { return tape + at.out.back(); }

  void forward(const Layout<T>& at, T* tape, const T* w, const T* x, int first) {
    for (size_t l = 0; l < plan.ops.size(); l++) {
      const Op& op = plan.ops[l];
      T *out = tape + at.out[l], *more = tape + at.other[l];
      switch (op.kind) {
        case CONVOLUTION:
          convolve(x, op.in.size(), w + parameter(op.weight).at, op.out.stride, op.forward, out, at.N,
                   op.bias < 0 ? nullptr : w + parameter(op.bias).at, false);
          break;
        case NORM: norm(op, w).forward(x, out, {more, op.out.stride}, at.N, first); break;
        case ACTIVATION: activate(op, x, out, at.N * op.out.size()); break;
        case MAX_POOL: largest(op, x, out, (int32_t*)more, at.N); break;
        case MEAN_POOL: means(op, x, out, at.N); break;
        case FLATTEN: flatten(op, x, out, at.N); break;
        case ARGMAX: Argmax<T>(op).forward(x, out, more, at.N); break;
        default: append(op, x, w + parameter(op.weight).at, out, at.N);
      }
      x = out;
    }
  }

  // from the gradient in the outputs; gw: where those in the weights go (filled with 0), or null; gx: in x, or null
  void backward(const Layout<T>& at, T* tape, const T* w, const T* x0, int first, T* gw, T* gx0) {
    if (gw) std::fill(gw, gw + plan.weights, T(0));
    for (size_t l = plan.ops.size(); l-- > 0;) {
      const Op& op = plan.ops[l];
      const T *x = l ? tape + at.out[l - 1] : x0, *out = tape + at.out[l];
      T *g = tape + at.gradient[l], *gx = l ? tape + at.gradient[l - 1] : gx0, *more = tape + at.other[l];
      switch (op.kind) {
        case CONVOLUTION:
          multiply_back(op, x, g, at.N, gw);
          if (gx) {
            transpose(parameter(op.weight), w + parameter(op.weight).at, more);
            convolve(g, op.out.size(), more, op.in.stride, op.backward, gx, at.N, (const T*)nullptr, false);
          }
          break;
        case NORM:
          norm(op, w).backward(x, out, g, {more, op.out.stride}, at.N, first, gx, to(gw, op.weight), to(gw, op.bias));
          break;
        case ACTIVATION: activate_linear(op, x, g, gx, at.N * op.out.size()); break;
        case MAX_POOL: put_back(op, g, (const int32_t*)more, gx, at.N); break;
        case MEAN_POOL: spread(op, g, gx, at.N); break;
        case FLATTEN: unflatten(op, g, gx, at.N); break;
        case ARGMAX: Argmax<T>(op).backward(more, g, gx, at.N); break;
        default: append_backward(op, g, gx, to(gw, op.weight), at.N);
      }
    }
  }

  // the tangents of all outputs, for the direction v in the weights; returns those of the last
  const T* tangent(const Layout<T>& at, const T* tape, const T* w, const T* v, const T* x) {
    T* xt = nullptr;
    for (size_t l = 0; l < plan.ops.size(); l++) {
      const Op& op = plan.ops[l];
      const T *out = tape + at.out[l], *more = tape + at.other[l];
      T* outt = tangents + at.out[l];
      switch (op.kind) {
        case CONVOLUTION: multiply_tangent(op, x, xt, w, v, outt, at.N); break;
        case NORM:
          if (!xt) std::fill(xt = no_tangent, no_tangent + at.N * op.in.size(), T(0));
          norm(op, w).tangent(x, out, {(T*)more, op.out.stride}, at.N, from(v, op.weight), from(v, op.bias), xt, outt,
                              tangents + at.other[l]);
          break;
        case ACTIVATION: activate_linear(op, x, xt, outt, at.N * op.out.size()); break;
        case MAX_POOL: take(op, xt, (const int32_t*)more, outt, at.N); break;
        case MEAN_POOL: means(op, xt, outt, at.N); break;
        case FLATTEN: flatten(op, xt, outt, at.N); break;
        case ARGMAX: Argmax<T>(op).tangent(more, xt, outt, at.N); break;
        default: append(op, (const T*)xt, v + parameter(op.weight).at, outt, at.N);
      }
      x = out;
      xt = outt;
    }
    return xt;
  }

  T* gradient_tangent() { return ping; }  // of the outputs, where `tangent_backward` begins

  // H v goes to hv; the tangent of the gradient in x to gx, if that is not null
  void tangent_backward(const Layout<T>& at, const T* tape, const T* w, const T* v, const T* x0, T* hv, T* gx) {
    std::fill(hv, hv + plan.weights, T(0));
    T *gt = ping, *next = pong;
    for (size_t l = plan.ops.size(); l-- > 0;) {
      const Op& op = plan.ops[l];
      const T *x = l ? tape + at.out[l - 1] : x0, *out = tape + at.out[l], *g = tape + at.gradient[l];
      const T *more = tape + at.other[l], *xt = l ? tangents + at.out[l - 1] : nullptr;
      const bool goes_on = l || gx;
      bool in_place = false;
      switch (op.kind) {
        case CONVOLUTION: {
          const Parameter& p = parameter(op.weight);
          multiply_back(op, x, gt, at.N, hv);
          if (xt && p.wanted) by_weights(op, xt, g, hv + p.at, at.N);
          if (!goes_on) break;
          const T* back = more;
          if (!l) {  // the backward pass of a step does not go that far
            transpose(p, w + p.at, (T*)scratch);
            back = scratch;
          }
          convolve((const T*)gt, op.out.size(), back, op.in.stride, op.backward, next, at.N, (const T*)nullptr, false);
          if (!p.adapted) break;
          transpose(p, v + p.at, (T*)scratch);
          convolve(g, op.out.size(), (const T*)scratch, op.in.stride, op.backward, next, at.N, (const T*)nullptr, true);
          break;
        }
        case NORM:
          norm(op, w).tangent_backward(x, out, g, {(T*)more, op.out.stride}, at.N, from(v, op.weight),
                                       xt ? xt : (const T*)no_tangent, tangents + at.other[l], gt, to(hv, op.weight),
                                       to(hv, op.bias));
          in_place = true;
          break;
        case ACTIVATION:
          activate_tangent_backward(op, x, xt, g, (const T*)gt, gt, at.N * op.out.size());
          in_place = true;
          break;
        case MAX_POOL: put_back(op, (const T*)gt, (const int32_t*)more, next, at.N); break;
        case MEAN_POOL: spread(op, (const T*)gt, next, at.N); break;
        case FLATTEN: unflatten(op, (const T*)gt, next, at.N); break;
        case ARGMAX: Argmax<T>(op).tangent_backward(more, xt, g, (const T*)gt, next, at.N); break;
        default: append_backward(op, (const T*)gt, next, to(hv, op.weight), at.N);
      }
      if (!in_place) std::swap(gt, next);
    }
    if (gx) std::copy(gt, gt + at.N * plan.in.size(), gx);
  }

 private:
  const Parameter& parameter(int index) const { return plan.parameters[index]; }
  Norm<T> norm(const Op& op, const T* w) { return {op, plan, w, scratch, totals}; }
  const T* from(const T* v, int index) const { return index < 0 ? nullptr : v + parameter(index).at; }
  T* to(T* gw, int index) const { return gw && index >= 0 && parameter(index).wanted ? gw + parameter(index).at : nullptr; }

  void multiply_back(const Op& op, const T* x, const T* g, int N, T* gw) {
    if (T* dw = to(gw, op.weight)) by_weights(op, x, g, dw, N);
    if (T* db = to(gw, op.bias)) {
      const int stride = op.out.stride;
      sums<T, 1>((size_t)N * op.out.h * op.out.w, stride, totals, [&](size_t o, int, vec<T>* v) { v[0] = load(g + o); });
      for (int c = 0; c < stride; c++) db[c] += totals[c];
    }
  }

  void multiply_tangent(const Op& op, const T* x, const T* xt, const T* w, const T* v, T* outt, int N) {
    const Parameter& p = parameter(op.weight);
    const T* start = from(v, op.bias);
    if (p.adapted) convolve(x, op.in.size(), v + p.at, op.out.stride, op.forward, outt, N, start, false);
    if (xt) convolve(xt, op.in.size(), w + p.at, op.out.stride, op.forward, outt, N, start, p.adapted);
    if (!p.adapted && !xt) rows_of<T>(0, (size_t)N * op.out.h * op.out.w, op.out.stride, [&](size_t o, int j) {
      store(outt + o, start ? load(start + j) : vec<T>{});
    });
  }
};
