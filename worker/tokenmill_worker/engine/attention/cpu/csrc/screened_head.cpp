// The arg-max of a vocabulary head, x W^T in bfloat16, without most of it: all columns are computed roughly, in int8,
// then those that may hold the maximum as linear_bf16 computes them. What is chosen is what the whole head would give.
//
// Of a row h and a column w, which int8 makes h' and w', Cauchy and Schwarz say
//   |w h - w' h'| = |(w - w') h' + w (h - h')| <= |w - w'| |h'| + |w| |h - h'|,
// and all four lengths are known. Float arithmetic of either product strays by a share of |w| |h| that is known as well
// (kStraying). So each column has a lower and an upper bound, and one whose upper bound lies below another's lower
// bound cannot hold the maximum. The bounds' own rounding is covered by kMargin.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "linear.h"
#include "vec.h"

namespace tokenmill_linear {
namespace {

using at::Tensor;
using tokenmill::Floats;
using tokenmill::LANES;
using tokenmill::load_floats;

constexpr float kMargin = 1.002f;  // lengths are summed in float32, in LANES parts of at most 4096 squares each
constexpr float kTie = 0.008f;     // logits this close, relatively, may become equal bfloat16: a step is at most 2^-7
constexpr float kTiny = 0x1p-100f, kShortest = 0x1p-50f, kLongest = 0x1p50f;  // of rows; others are not screened
constexpr int64_t kAhead = 4;          // times as many columns may be kept meanwhile as may be left in the end
constexpr int64_t kChunk = 8;          // panels in a row for one thread
constexpr int64_t kGrain = 8;          // rows worth waking another thread for

// Of a product over `width` inputs, in |w| |h|. linear_bf16 rounds at most three times for every two inputs; the
// conversion of int8's sum strays by one in 2^24 of what it could be at most, which is 2 * width * |w| |h|.
float straying(int64_t width) { return static_cast<float>(3 * width + 16) * 0x1p-23f; }

struct Head {
  const Tensor& weight;  // bfloat16 [V, K]
  const Tensor& packed;  // the same in int8, as linear_w8a8 takes it
  const float* scales;   // [V]
  const float* sums;     // [V]
  const float* errors;   // |w - w'|, filled up to whole panels
  const float* norms;    // |w|, filled up to whole panels

  int64_t num_columns() const { return weight.size(0); }
  int64_t width() const { return weight.size(1); }
  int64_t panel_bytes() const { return packed.size(1) * packed.size(2); }
  Panel panel(int64_t index) const {
    int64_t first = index * kColumns;
    return {packed.const_data_ptr<uint8_t>() + index * panel_bytes(), scales + first, sums + first, nullptr,
            std::min(kColumns, num_columns() - first)};
  }
};

// How far a column's rough logit may be off: errors * |w - w'| + norms * |w|.
struct Reach {
  float errors, norms;
};

struct Hit {
  int32_t row, column;
  float high;
};

float length(const float (&squares)[LANES]) {
  double sum = 0;
  for (float part : squares) sum += part;
  return static_cast<float>(std::sqrt(sum));
}

float from_bfloat16(uint16_t bits) {
  uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

// What is not screened gets NaN.
Reach reach_of(const uint16_t* values, const uint8_t* levels, RowScale scale, int64_t width) {
  float own[LANES] = {}, rough[LANES] = {}, error[LANES] = {};
  for (int64_t first = 0; first < width; first += LANES) {
    int64_t count = std::min<int64_t>(LANES, width - first);
    for (int64_t lane = 0; lane < count; ++lane) {
      float value = from_bfloat16(values[first + lane]);
      float level = scale.scale * (static_cast<float>(levels[first + lane]) - scale.zero_point);
      own[lane] += value * value, rough[lane] += level * level, error[lane] += (value - level) * (value - level);
    }
  }
  float longer = std::max(length(own), length(rough)), nan = std::numeric_limits<float>::quiet_NaN();
  if (!(length(own) >= kShortest && longer <= kLongest)) return {nan, nan};
  return {kMargin * longer, kMargin * (length(error) + straying(width) * longer)};
}

// Below this no column can be the likeliest, nor tie with it, when another is at least `known`.
float threshold(float known) { return known - kTie * std::fabs(known) - kTiny; }

class Screening {
 public:
  Screening(const Tensor& x, const Head& head, const Kernels& kernels)
      : x_(x),
        head_(head),
        kernels_(kernels),
        num_rows_(x.size(0)),
        num_units_(head.packed.size(1)),
        num_blocks_((num_rows_ + kernels.max_rows - 1) / kernels.max_rows),
        most_(std::max<int64_t>(256, head.num_columns() / 16)),
        units_(num_rows_ * num_units_),
        scales_(num_rows_),
        reaches_(num_rows_),
        known_(num_rows_) {}

  Tensor run() {
    for (auto& known : known_) known.store(std::numeric_limits<float>::lowest(), std::memory_order_relaxed);
    at::parallel_for(0, num_blocks_, std::max<int64_t>(1, kGrain / kernels_.max_rows),
                     [&](int64_t begin, int64_t end) { prepare(begin, end); });
    int64_t num_workers = at::get_num_threads();
    std::vector<std::vector<Hit>> hits(num_workers);
    at::parallel_for(0, num_workers, 1, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; ++worker) scan(worker, num_workers, hits[worker]);
    });
    sort(hits);
    Tensor token_ids = at::empty({num_rows_}, x_.options().dtype(at::kLong));
    int64_t* chosen = token_ids.mutable_data_ptr<int64_t>();
    at::parallel_for(0, num_rows_, 2, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) chosen[row] = choose(row);
    });
    return token_ids;
  }

 private:
  // Blocks differ by at most one row, the larger ones first.
  int64_t start(int64_t block) const {
    return block * (num_rows_ / num_blocks_) + std::min(block, num_rows_ % num_blocks_);
  }

  const uint16_t* values(int64_t row) const {
    return static_cast<const uint16_t*>(x_.const_data_ptr()) + row * head_.width();
  }

  Row row_of_x(int64_t row) const { return {values(row), false, head_.width(), nullptr}; }

  void prepare(int64_t begin, int64_t end) {
    std::vector<uint32_t> levels(kernels_.max_rows * num_units_);
    auto bytes = reinterpret_cast<const char*>(levels.data());
    for (int64_t block = begin; block < end; ++block) {
      int64_t first = start(block), count = start(block + 1) - first;
      for (int64_t row = first; row < first + count; ++row) {
        int64_t place = (row - first) * num_units_;
        scales_[row] = kernels_.quantize(row_of_x(row), levels.data() + place);
        auto own = reinterpret_cast<const uint8_t*>(levels.data() + place);
        reaches_[row] = reach_of(values(row), own, scales_[row], head_.width());
      }
      kernels_.interleave({bytes, 4 * num_units_, count, num_units_}, units_.data() + first * num_units_);
    }
  }

  // Threads take turns, so that each of them soon knows what the frequent tokens give, which have the lowest ids.
  void scan(int64_t worker, int64_t num_workers, std::vector<Hit>& hits) {
    int64_t num_panels = head_.packed.size(0);
    std::vector<float> rough(kernels_.max_rows * kColumns);
    std::vector<int32_t> counts(num_rows_);
    for (int64_t chunk = worker; chunk * kChunk < num_panels; chunk += num_workers) {
      int64_t end = std::min((chunk + 1) * kChunk, num_panels);
      for (int64_t index = chunk * kChunk; index < end; ++index) {
        int64_t next = index + 1 < end ? index + 1 : (chunk + num_workers) * kChunk;
        scan_panel(index, std::min(next, num_panels - 1), rough, counts, hits);
      }
    }
  }

  void scan_panel(int64_t index, int64_t next, std::vector<float>& rough, std::vector<int32_t>& counts,
                  std::vector<Hit>& hits) {
    Panel panel = head_.panel(index);
    const Turns turns{num_rows_, num_blocks_, head_.panel_bytes(), num_units_};
    if (panel.width < kColumns) std::fill(rough.begin(), rough.end(), -std::numeric_limits<float>::infinity());
    for (int64_t number = 0; number < num_blocks_; ++number) {
      int64_t first = start(number), count = start(number + 1) - first;
      Block block{units_.data() + first * num_units_, scales_.data() + first, count, num_units_, rough.data(), kColumns,
                  true};
      kernels_.w8a8(block, panel, turns.ahead(panel.weights, head_.panel(next).weights, number));
      for (int64_t row = first; row < first + count; ++row)
        look(row, index, rough.data() + (row - first) * kColumns, counts[row], hits);
    }
  }

  void look(int64_t row, int64_t index, const float* rough, int32_t& count, std::vector<Hit>& hits) {
    float known = known_[row].load(std::memory_order_relaxed), least = threshold(known);
    Reach reach = reaches_[row];
    for (int64_t lane = 0; lane < kColumns; lane += LANES) {
      int64_t column = index * kColumns + lane;
      Floats logits = load_floats(rough + lane);
      Floats off = reach.errors * load_floats(head_.errors + column) + reach.norms * load_floats(head_.norms + column);
      Floats low = logits - off, high = logits + off;
      if (tokenmill::is_any_above(low, known)) least = threshold(known = raise(row, tokenmill::max(low)));
      if (tokenmill::is_any_above(high, least)) keep(row, column, high, least, count, hits);
    }
  }

  float raise(int64_t row, float to) {
    float known = known_[row].load(std::memory_order_relaxed);
    while (known < to && !known_[row].compare_exchange_weak(known, to, std::memory_order_relaxed)) {
    }
    return std::max(known, to);
  }

  // A thread that runs ahead of those with the best columns keeps more than will be left. A row with far too many is
  // given up: nothing is above infinity.
  void keep(int64_t row, int64_t column, Floats high, float least, int32_t& count, std::vector<Hit>& hits) {
    for (int lane = 0; lane < LANES; ++lane) {
      if (!(high[lane] > least)) continue;
      hits.push_back({static_cast<int32_t>(row), static_cast<int32_t>(column + lane), high[lane]});
      if (++count > kAhead * most_) raise(row, std::numeric_limits<float>::infinity());
    }
  }

  // The columns that are left, row by row.
  void sort(const std::vector<std::vector<Hit>>& hits) {
    starts_.assign(num_rows_ + 1, 0);
    for_each_left(hits, [&](const Hit& hit) { ++starts_[hit.row + 1]; });
    for (int64_t row = 0; row < num_rows_; ++row) starts_[row + 1] += starts_[row];
    columns_.resize(starts_.back());
    std::vector<int64_t> place(starts_.begin(), starts_.end() - 1);
    for_each_left(hits, [&](const Hit& hit) { columns_[place[hit.row]++] = hit.column; });
  }

  template <typename Body>
  void for_each_left(const std::vector<std::vector<Hit>>& hits, Body body) const {
    for (const auto& own : hits)
      for (const Hit& hit : own)
        if (hit.high > threshold(known_[hit.row].load(std::memory_order_relaxed))) body(hit);
  }

  // -1 where the bounds decide too little.
  int64_t choose(int64_t row) {
    int32_t *columns = columns_.data() + starts_[row], *end = columns_.data() + starts_[row + 1];
    if (columns == end || end - columns > most_) return -1;
    if (end - columns > 1) end = narrow(row, columns, end);
    return end - columns == 1 ? *columns : exactly(row, columns, end);
  }

  // The same once more among the few, in float32. Returns the new end.
  int32_t* narrow(int64_t row, int32_t* begin, int32_t* end) const {
    const float reach = 2 * straying(head_.width()) * reaches_[row].errors;
    std::vector<float> logits(end - begin);
    float known = std::numeric_limits<float>::lowest();
    for (int32_t* column = begin; column < end; ++column) {
      if (column + 1 < end) fetch(column[1]);
      logits[column - begin] = dot(values(row), column_of_head(*column));
      known = std::max(known, logits[column - begin] - reach * head_.norms[*column]);
    }
    int32_t* kept = begin;
    for (int32_t* column = begin; column < end; ++column)
      if (logits[column - begin] + reach * head_.norms[*column] > threshold(known)) *kept++ = *column;
    return kept;
  }

  const uint16_t* column_of_head(int32_t column) const {
    return static_cast<const uint16_t*>(head_.weight.const_data_ptr()) + column * head_.width();
  }

  void fetch(int32_t column) const {
    auto from = reinterpret_cast<const char*>(column_of_head(column));
    for (int64_t byte = 0; byte < 2 * head_.width(); byte += 64) __builtin_prefetch(from + byte);
  }

  float dot(const uint16_t* a, const uint16_t* b) const {
    auto left = reinterpret_cast<const tokenmill::bf16*>(a), right = reinterpret_cast<const tokenmill::bf16*>(b);
    Floats sums[4] = {};
    int64_t k = 0, width = head_.width();
    for (; k + 4 * LANES <= width; k += 4 * LANES)
      for (int64_t part = 0; part < 4; ++part)
        sums[part] += load_floats(left + k + part * LANES) * load_floats(right + k + part * LANES);
    for (; k < width; k += LANES) {
      int count = static_cast<int>(std::min<int64_t>(LANES, width - k));
      sums[0] += load_floats(left + k, count) * load_floats(right + k, count);
    }
    return tokenmill::sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }

  // As linear_bf16 computes them, and the arg-max of that.
  int64_t exactly(int64_t row, const int32_t* columns, const int32_t* end) const {
    int64_t num_units = head_.width() / 2;
    std::vector<uint32_t> units(num_units), panel(num_units * kColumns);
    RowScale scale = kernels_.round(row_of_x(row), units.data());
    int64_t best = -1;
    float largest = 0;
    for (; columns < end; columns += kColumns) {
      int64_t width = std::min(kColumns, end - columns);
      gather(columns, width, panel.data());
      uint16_t logits[kColumns];
      Block block{units.data(), &scale, 1, num_units, logits, kColumns, false};
      auto weights = reinterpret_cast<const uint8_t*>(panel.data());
      kernels_.bf16(block, {weights, nullptr, nullptr, nullptr, width}, {weights, 4 * kColumns});
      for (int64_t own = 0; own < width; ++own) {
        float logit = from_bfloat16(logits[own]);
        bool is_first = best < 0 || columns[own] < best;
        if (best < 0 || logit > largest || (logit == largest && is_first)) largest = logit, best = columns[own];
      }
    }
    return best;
  }

  // These columns side by side, as linear_bf16 has them.
  void gather(const int32_t* columns, int64_t count, uint32_t* panel) const {
    for (int64_t own = 0; own < count; ++own) {
      const uint16_t* from = column_of_head(columns[own]);
      for (int64_t unit = 0; 2 * unit < head_.width(); ++unit) std::memcpy(panel + unit * kColumns + own, from + 2 * unit, 4);
    }
  }

  const Tensor& x_;
  const Head& head_;
  const Kernels& kernels_;
  const int64_t num_rows_, num_units_, num_blocks_;
  const int64_t most_;  // columns that a row may be left with
  std::vector<uint32_t> units_;
  std::vector<RowScale> scales_;
  std::vector<Reach> reaches_;
  std::vector<std::atomic<float>> known_;  // the highest lower bound of each row
  std::vector<int64_t> starts_;
  std::vector<int32_t> columns_;
};

const float* floats(const Tensor& values, int64_t count) {
  TORCH_CHECK(values.is_contiguous() && values.scalar_type() == at::kFloat && values.numel() == count,
              "scales and sums must be float32, one a column, errors and norms as well, filled up to whole panels");
  return values.const_data_ptr<float>();
}

Tensor screened_argmax(const Tensor& input, const Tensor& weight, const Tensor& packed, const Tensor& scales,
                       const Tensor& sums, const Tensor& errors, const Tensor& norms, bool portable) {
  Tensor x = input.contiguous();
  TORCH_CHECK(x.dim() == 2 && x.scalar_type() == at::kBFloat16 && weight.dim() == 2 && weight.is_contiguous() &&
                  weight.scalar_type() == at::kBFloat16 && weight.size(1) == x.size(1) && x.size(1) % 2 == 0 &&
                  weight.size(0) > 0,
              "x and the weight must be bfloat16 matrices, of one even number of inputs");
  int64_t num_panels = (weight.size(0) + kColumns - 1) / kColumns;
  TORCH_CHECK(packed.dim() == 3 && packed.is_contiguous() && packed.scalar_type() == at::kByte &&
                  packed.size(0) == num_panels && packed.size(1) == (x.size(1) + 3) / 4 &&
                  packed.size(2) == 4 * kColumns,
              "the weight was packed for another shape");
  static const Kernels fast = fast_kernels(), plain = portable_kernels();
  Head head{weight, packed, floats(scales, weight.size(0)), floats(sums, weight.size(0)),
            floats(errors, num_panels * kColumns), floats(norms, num_panels * kColumns)};
  if (x.size(0) == 0) return at::empty({0}, x.options().dtype(at::kLong));
  return Screening(x, head, portable ? plain : fast).run();
}

}  // namespace

// The token ids [S] of the rows' largest logits, of equal ones the lowest; -1 where the whole head has to be asked.
TORCH_LIBRARY_FRAGMENT(tokenmill_cpu, m) {
  m.def(
      "screened_argmax(Tensor x, Tensor weight, Tensor packed, Tensor scales, Tensor sums, Tensor errors, "
      "Tensor norms, bool portable=False) -> Tensor");
}

TORCH_LIBRARY_IMPL(tokenmill_cpu, CPU, m) { m.impl("screened_argmax", screened_argmax); }

}  // namespace tokenmill_linear
