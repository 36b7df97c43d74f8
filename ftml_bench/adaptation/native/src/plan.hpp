// A network as a list of operations, with the tables that each needs; maps lie as (rows, H, W, channels), the channels
// filled up to whole vectors.
#pragma once
#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <vector>
#include "vectors.hpp"

enum Kind { CONVOLUTION, NORM, ACTIVATION, MAX_POOL, MEAN_POOL, FLATTEN, ARGMAX, APPEND };
constexpr int OP_NUMBERS = 16, PARAMETER_NUMBERS = 6;

struct Map {
  int h = 1, w = 1, c = 1, stride = 1;  // stride: numbers from one place to the next
  size_t size() const { return (size_t)h * w * stride; }
};
struct Run { int32_t x, w, n; };  // n numbers that lie side by side, times the rows of weights from w on
struct Group {                    // weights whose gradient is summed over the same places
  size_t w;
  int rows;
  std::vector<int32_t> places;    // pairs: where in x, where in the gradient
};
struct Table {
  std::vector<Run> runs;
  std::vector<int> start;  // of each place's runs
};
struct Window { int y0, y1, x0, x1; double share; };
struct Parameter {
  int outputs, inputs, taps;  // a vector has inputs = 0
  bool adapted, wanted;
  size_t at;                  // where it begins among all, in the form of the operations
  int stride;
  size_t size() const { return (size_t)std::max(inputs, 1) * taps * stride; }
};
struct Op {
  int kind, weight, bias;
  int64_t k[10];
  double a, b;
  Map in, out;
  Table forward, backward;
  std::vector<Group> groups;
  std::vector<Window> windows;
};

template <class T> struct Plan {
  std::vector<Op> ops;
  std::vector<Parameter> parameters;
  size_t weights = 0;
  Map in;

  Plan(const int64_t* input, int64_t nops, const int64_t* rows, const double* reals, int64_t nparameters,
       const int64_t* shapes, bool wants_x) {
    for (int64_t i = 0; i < nparameters; i++, shapes += PARAMETER_NUMBERS) {
      Parameter p{(int)shapes[0], (int)shapes[1], (int)shapes[2], shapes[3] != 0, shapes[4] != 0, weights,
                  padded<T>(shapes[0])};
      weights += p.size();
      parameters.push_back(p);
    }
    bool first_multiplies = nops > 0 && rows[0] == CONVOLUTION;
    in = {(int)input[0], (int)input[1], (int)input[2], 0};
    in.stride = first_multiplies && !wants_x ? in.c : padded<T>(in.c);
    Map at = in;
    for (int64_t i = 0; i < nops; i++, rows += OP_NUMBERS, reals += 2) {
      Op op;
      op.kind = rows[0]; op.weight = rows[4]; op.bias = rows[5];
      std::copy(rows + 6, rows + OP_NUMBERS, op.k);
      op.a = reals[0]; op.b = reals[1];
      op.in = at;
      op.out = {(int)rows[1], (int)rows[2], (int)rows[3], padded<T>(rows[3])};
      if (op.kind == CONVOLUTION) tabulate_convolution(op);
      if (op.kind == MAX_POOL || op.kind == MEAN_POOL) tabulate_windows(op);
      at = op.out;
      ops.push_back(std::move(op));
    }
  }

  const Map& out() const { return ops.empty() ? in : ops.back().out; }

 private:
  // k: kernel h, w, stride h, w, padding h, w, dilation h, w
  void tabulate_convolution(Op& op) {
    const int kh = op.k[0], kw = op.k[1], sh = op.k[2], sw = op.k[3], ph = op.k[4], pw = op.k[5];
    const int dh = op.k[6], dw = op.k[7], ic = op.in.c, oc = op.out.c;
    const bool lies_together = op.in.stride == ic && dw == 1;
    std::vector<std::vector<Run>> back((size_t)op.in.h * op.in.w);
    std::map<std::pair<int, int>, size_t> known;  // first tap, number of taps -> group
    op.forward.start.push_back(0);
    for (int y = 0; y < op.out.h; y++) for (int x = 0; x < op.out.w; x++) {
      const int place = y * op.out.w + x;
      for (int a = 0; a < kh; a++) {
        const int iy = y * sh + a * dh - ph;
        if (iy < 0 || iy >= op.in.h) continue;
        for (int b = 0; b < kw;) {
          const int ix = x * sw + b * dw - pw;
          if (ix < 0 || ix >= op.in.w) { b++; continue; }
          int count = 1;
          while (lies_together && b + count < kw && ix + count < op.in.w) count++;
          const int tap = a * kw + b, from = iy * op.in.w + ix;
          op.forward.runs.push_back({from * op.in.stride, tap * ic * op.out.stride, count * ic});
          const auto found = known.emplace(std::make_pair(tap, count), op.groups.size());
          if (found.second) op.groups.push_back({(size_t)tap * ic * op.out.stride, count * ic, {}});
          auto& places = op.groups[found.first->second].places;
          places.push_back(from * op.in.stride);
          places.push_back(place * op.out.stride);
          for (int i = 0; i < count; i++)
            back[from + i].push_back({place * op.out.stride, (tap + i) * oc * padded<T>(ic), oc});
          b += count;
        }
      }
      op.forward.start.push_back(op.forward.runs.size());
    }
    op.backward.start.push_back(0);
    for (auto& runs : back) {
      op.backward.runs.insert(op.backward.runs.end(), runs.begin(), runs.end());
      op.backward.start.push_back(op.backward.runs.size());
    }
  }

  // k: kernel h, w, stride h, w, padding h, w, whether padding counts; a kernel of 0: windows that divide the map
  void tabulate_windows(Op& op) {
    const auto range = [](int i, int side, int out, int kernel, int step, int pad, int& from, int& to) {
      if (kernel == 0) {
        from = (int)((int64_t)i * side / out);
        to = (int)(((int64_t)(i + 1) * side + out - 1) / out);
      } else {
        from = std::max(i * step - pad, 0);
        to = std::min(i * step - pad + kernel, side);
      }
    };
    for (int y = 0; y < op.out.h; y++) for (int x = 0; x < op.out.w; x++) {
      Window w;
      range(y, op.in.h, op.out.h, op.k[0], op.k[2], op.k[4], w.y0, w.y1);
      range(x, op.in.w, op.out.w, op.k[1], op.k[3], op.k[5], w.x0, w.x1);
      w.share = 1.0 / (op.k[6] ? op.k[0] * op.k[1] : (w.y1 - w.y0) * (w.x1 - w.x0));
      op.windows.push_back(w);
    }
  }
};

// The plan of a network; those of the last networks are kept, since tables take long to make.
template <class T>
std::shared_ptr<const Plan<T>> plan_of(const int64_t* input, int64_t nops, const int64_t* rows, const double* reals,
                                       int64_t nparameters, const int64_t* shapes, bool wants_x) {
  static std::mutex guard;
  static std::map<std::pair<std::vector<int64_t>, std::vector<double>>, std::shared_ptr<const Plan<T>>> known;
  std::vector<int64_t> numbers{nops, wants_x, input[0], input[1], input[2]};
  numbers.insert(numbers.end(), rows, rows + nops * OP_NUMBERS);
  numbers.insert(numbers.end(), shapes, shapes + nparameters * PARAMETER_NUMBERS);
  const std::pair<std::vector<int64_t>, std::vector<double>> key(numbers, {reals, reals + 2 * nops});
  std::lock_guard<std::mutex> lock(guard);
  auto& plan = known[key];
  if (!plan) {
    auto made = std::make_shared<const Plan<T>>(input, nops, rows, reals, nparameters, shapes, wants_x);
    if (known.size() > 32) known.clear();
    return known[key] = made;
  }
  return plan;
}
