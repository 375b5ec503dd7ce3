// Attention over pages: blocks of queries against one page after another, softmax on the way, all sums in float32.
//
// A block is up to BLOCK_ROWS rows: consecutive tokens of one request times the query heads that share a KV head, so that
// every key and value is read once for all of them. Per page: scores = queries x keys, weights = 2^(scores - maximum),
// sums += weights x values. A row's arithmetic does not depend on the other rows of its block, nor on threads, nor on
// other requests; a request's only on how many of its tokens are in the step and how long it is.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "tiles.h"
#include "tokens.h"

namespace tokenmill {
namespace {

constexpr int64_t BLOCK_ROWS = 64;
constexpr int64_t SPLIT_PAGES = 16;  // long contexts of few tokens are cut into pieces of so many pages, merged at the end
constexpr int64_t MANY_UNITS = 8;    // for each thread
constexpr int64_t STORE_GRAIN = 24;  // keys and values of one head
constexpr int64_t PAGES_AHEAD = 2;   // are fetched from memory while one is computed
constexpr int64_t SMALL_COST = 64;   // pages times heads times blocks: below, one thread is faster than waking another
constexpr float NOTHING_YET = -1e30f;  // a maximum that is finite, so that -inf - maximum is never NaN
constexpr float SLACK = 8.0f;  // weights may grow to 2^SLACK before the sums are rescaled to a new maximum

constexpr uint32_t EARLIER = 0x0000ffffu, LATER = 0xffff0000u, BOTH = EARLIER | LATER;  // keys of a word of weights

// Tokens [first_token, + num_tokens) of the step against keys [first_key, last_key) of their request.
struct Unit {
  int64_t row;
  int64_t first_token;
  int64_t num_tokens;
  int64_t first_position;  // of first_token in its request
  int64_t first_key;
  int64_t last_key;
  int64_t num_splits;    // of the whole, of which this is one
  int64_t first_partial; // index of split 0's partial result for head 0; the others follow, split by split
  int64_t split;
  bool stores;  // its tokens' keys and values: no other unit of the row looks at them
  int64_t cost() const { return num_tokens * (last_key - first_key + PAGE_SIZE); }
};

// A block's state, in memory that a thread keeps.
template <class T>
struct State {
  using Word = typename Packed<T>::Word;
  int64_t num_rows = 0;
  int64_t stride = 0;             // of a row of `sums`
  std::vector<Word> queries;      // [words][rows]
  std::vector<float> scores;      // [rows][PAGE_SIZE]
  std::vector<Word> weights;      // [rows][PAGE_SIZE / PER_WORD]
  std::vector<float> totals;      // [rows][LANES]: sums of weights, not yet added up over the lanes
  std::vector<float> maxima;      // [rows]
  std::vector<float> sums;        // [rows][stride]
  std::vector<int64_t> last_key;  // [rows]: the first key that the row may not see

  static State& own() {
    static thread_local State state;
    return state;
  }

  void begin(int64_t rows, int64_t key_words, int64_t value_dim) {
    num_rows = rows;
    stride = (value_dim + LANES - 1) / LANES * LANES;
    queries.resize(key_words * rows);
    scores.resize(rows * PAGE_SIZE);
    weights.resize(rows * PAGE_SIZE / Packed<T>::PER_WORD);
    totals.assign(rows * LANES, 0.0f);
    maxima.assign(rows, NOTHING_YET);
    sums.assign(rows * stride, 0.0f);
    last_key.resize(rows);
  }
};

template <class T>
class Attention {
  using P = Packed<T>;
  using Word = typename P::Word;

 public:
  Attention(const Tokens<T>& tokens, Pages<T> pages, const Step& step, const Layer& layer, T* result)
      : tokens_(tokens),
        pages_(pages),
        step_(step),
        layer_(layer),
        result_(result),
        group_(layer.heads / layer.kv_heads),
        scale_(layer.softcap == 0.0f ? layer.scale * LOG2_E : layer.scale) {
    for (int64_t row = 0; row < step.num_rows; ++row) plan(row);
    partials_.reset(new float[num_partials_ * partial_size()]);
    pending_ = std::vector<std::atomic<int>>(step.num_rows * layer.kv_heads);
    for (const Unit& unit : units_) {
      for (int64_t head = 0; head < layer.kv_heads; ++head) {
        pending_[unit.row * layer.kv_heads + head].store(static_cast<int>(unit.num_splits), std::memory_order_relaxed);
      }
    }
  }

  void run() {
    store_shared();
    std::stable_sort(units_.begin(), units_.end(), [](const Unit& a, const Unit& b) { return a.cost() > b.cost(); });
    int64_t cost = 0;
    for (const Unit& unit : units_) cost += unit.cost() * layer_.kv_heads;
    const int64_t num_items = static_cast<int64_t>(units_.size()) * layer_.kv_heads;
    const int64_t num_workers = cost < SMALL_COST * PAGE_SIZE ? 1 : std::min(num_threads(), num_items);
    // Where there are many units, a thread takes one with all its heads: it then knows what it will need next.
    const int64_t stretch = num_items >= MANY_UNITS * num_workers * layer_.kv_heads ? layer_.kv_heads : 1;
    std::atomic<int64_t> next{0};
    parallel_for(num_workers, 1, [&](int64_t begin, int64_t end) {
      State<T>& state = State<T>::own();
      for (int64_t worker = begin; worker < end; ++worker) {
        for (int64_t first; (first = next.fetch_add(stretch, std::memory_order_relaxed)) < num_items;) {
          for (int64_t item = first; item < first + stretch; ++item) {
            // Then what this thread is likely to take: the others are at the items between.
            const int64_t likely = std::min(first + stretch * num_workers, num_items - 1);
            const int64_t upcoming = item + 1 < first + stretch ? item + 1 : likely;
            attend(units_[item / layer_.kv_heads], item % layer_.kv_heads, upcoming, state);
          }
        }
      }
    });
  }

 private:
  void store_shared() {
    const auto count = static_cast<int64_t>(shared_tokens_.size());
    parallel_for(count * layer_.kv_heads, STORE_GRAIN, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) tokens_.store(shared_tokens_[i / layer_.kv_heads], i % layer_.kv_heads);
    });
  }

  // One unit per block of queries; where all are in one block, one per piece of the context.
  void plan(int64_t row) {
    const int64_t first = step_.row_starts[row], last = step_.row_starts[row + 1];
    const int64_t context = step_.context_lens[row], before = context - (last - first);
    const int64_t per_block = std::max<int64_t>(1, BLOCK_ROWS / group_);
    for (int64_t token = first; token < last; token += per_block) {
      const int64_t count = std::min(per_block, last - token), position = before + token - first;
      const int64_t end = position + count;
      const int64_t begin = position < layer_.window ? 0 : position - layer_.window + 1;
      const bool is_single = last - first <= per_block;
      const Unit unit{row, token, count, position, begin, end, 1, num_partials_, 0, is_single};
      if (is_single) return split(unit);
      units_.push_back(unit);
    }
    for (int64_t token = first; token < last; ++token) shared_tokens_.push_back(token);
  }

  void split(Unit whole) {
    const int64_t first_page = whole.first_key / PAGE_SIZE, last_page = (whole.last_key + PAGE_SIZE - 1) / PAGE_SIZE;
    const int64_t num_splits = (last_page - first_page + SPLIT_PAGES - 1) / SPLIT_PAGES;
    if (num_splits > 1) num_partials_ += num_splits * layer_.kv_heads;
    for (int64_t index = 0; index < num_splits; ++index) {
      Unit unit = whole;
      unit.num_splits = num_splits;
      unit.split = index;
      unit.first_key = std::max(whole.first_key, (first_page + index * SPLIT_PAGES) * PAGE_SIZE);
      unit.last_key = std::min(whole.last_key, (first_page + (index + 1) * SPLIT_PAGES) * PAGE_SIZE);
      units_.push_back(unit);
    }
  }

  void attend(const Unit& unit, int64_t head, int64_t upcoming, State<T>& state) {
    const int64_t key_words = layer_.key_dim / P::PER_WORD;
    state.begin(unit.num_tokens * group_, key_words, layer_.value_dim);
    pack_queries(unit, head, state);
    const int32_t* page_ids = step_.page_ids + step_.page_starts[unit.row];
    const int64_t last_page = (unit.last_key - 1) / PAGE_SIZE;
    for (int64_t page = unit.first_key / PAGE_SIZE; page <= last_page; ++page) {
      if (unit.stores) store_page(unit, head, page);
      const auto [next_keys, next_values] = tiles_ahead(unit, head, page + PAGES_AHEAD, last_page, upcoming);
      score(key_tile(page_ids[page], head), next_keys, state);
      for (int64_t m = 0; m < state.num_rows; ++m) weigh(unit, page * PAGE_SIZE, m, state);
      gather_values(unit, page * PAGE_SIZE, value_tile(page_ids[page], head), next_values, state);
    }
    if (unit.num_splits == 1) {
      finish(unit, head, state);
    } else {
      set_aside(unit, head, state);
    }
  }

  // The tokens that belong into this page: just before it is read, so that its lines are on their way already.
  void store_page(const Unit& unit, int64_t head, int64_t page) const {
    const int64_t from = unit.first_token - unit.first_position;  // the token of position 0, if it were in the step
    const int64_t begin = std::max(unit.first_token, from + page * PAGE_SIZE);
    const int64_t end = std::min(unit.first_token + unit.num_tokens, from + (page + 1) * PAGE_SIZE);
    for (int64_t token = begin; token < end; ++token) tokens_.store(token, head);
  }

  void score(const T* keys, const T* next_keys, State<T>& state) const {
    const int64_t num_words = layer_.key_dim / P::PER_WORD;
    const ptrdiff_t distance = bytes_between(keys, next_keys);
    for_rows<SCORE_ROWS>(0, state.num_rows, [&]<int M>(int64_t m) {
      auto* multiply = m == 0 ? score_rows<T, M, true> : score_rows<T, M, false>;
      multiply(&state.queries[m], state.num_rows, keys, num_words, distance, &state.scores[m * PAGE_SIZE]);
    });
  }

  static ptrdiff_t bytes_between(const T* tile, const T* next) {
    return reinterpret_cast<const char*>(next) - reinterpret_cast<const char*>(tile);
  }

  const T* key_tile(int64_t page, int64_t head) const {
    return pages_.keys + (page * layer_.kv_heads + head) * PAGE_SIZE * layer_.key_dim;
  }

  const T* value_tile(int64_t page, int64_t head) const {
    return pages_.values + (page * layer_.kv_heads + head) * PAGE_SIZE * layer_.value_dim;
  }

  // Of page `page` of the unit, or, past its end, of as many pages into the upcoming item.
  std::pair<const T*, const T*> tiles_ahead(const Unit& unit, int64_t head, int64_t page, int64_t last_page,
                                            int64_t upcoming) const {
    int64_t row = unit.row;
    if (page > last_page) {
      const Unit& other = units_[upcoming / layer_.kv_heads];
      const int64_t other_last = (other.last_key - 1) / PAGE_SIZE;
      page = std::min(other.first_key / PAGE_SIZE + page - last_page - 1, other_last);
      row = other.row;
      head = upcoming % layer_.kv_heads;
    }
    const int64_t id = step_.page_ids[step_.page_starts[row] + page];
    return {key_tile(id, head), value_tile(id, head)};
  }

  void pack_queries(const Unit& unit, int64_t head, State<T>& state) {
    const int64_t key_words = layer_.key_dim / P::PER_WORD;
    T space[MAX_KEY_DIM];
    for (int64_t m = 0; m < state.num_rows; ++m) {
      const T* query = tokens_.query(unit.first_token + m / group_, head * group_ + m % group_, space);
      for (int64_t word = 0; word < key_words; ++word) {
        std::memcpy(&state.queries[word * state.num_rows + m], query + word * P::PER_WORD, 4);
      }
      state.last_key[m] = std::min(unit.last_key, unit.first_position + m / group_ + 1);
    }
  }

  // Scores become weights relative to the row's maximum so far, in powers of two.
  void weigh(const Unit& unit, int64_t first_key, int64_t m, State<T>& state) {
    Floats score[SCORE_VECTORS];
    for (int v = 0; v < SCORE_VECTORS; ++v) {
      score[v] = load_floats(&state.scores[m * PAGE_SIZE + v * LANES]) * scale_;
      if (layer_.softcap != 0.0f) score[v] = layer_.softcap * LOG2_E * tanh(score[v] / layer_.softcap);
    }
    hide(unit, first_key, m, state.last_key[m], score);
    float maximum = state.maxima[m];
    Floats largest = score[0];
    for (int v = 1; v < SCORE_VECTORS; ++v) largest = larger(largest, score[v]);
    if (is_any_above(largest, maximum + SLACK)) maximum = raise(m, max(largest), state);
    Floats total = load_floats(&state.totals[m * LANES]);
    T* weights = reinterpret_cast<T*>(&state.weights[m * PAGE_SIZE / P::PER_WORD]);
    for (int v = 0; v < SCORE_VECTORS; ++v) {
      const Floats weight = P::exp2(score[v] - maximum);
      total += weight;
      store(weights + v * LANES, weight);
    }
    store(&state.totals[m * LANES], total);
  }

  void hide(const Unit& unit, int64_t first_key, int64_t m, int64_t last_key, Floats* score) const {
    const int64_t position = unit.first_position + m / group_;
    const int64_t seen_from = position < layer_.window ? 0 : position - layer_.window + 1;
    const int64_t from = std::max(seen_from, unit.first_key) - first_key, to = last_key - first_key;
    if (from <= 0 && to >= PAGE_SIZE) return;
    const uint64_t seen = bits_below(to) & ~bits_below(from);
    for (int v = 0; v < SCORE_VECTORS; ++v) {
      score[v] = chosen(static_cast<uint32_t>(seen >> (v * LANES)), score[v], all(-INFINITY));
    }
  }

  static uint64_t bits_below(int64_t count) { return (uint64_t{1} << std::clamp<int64_t>(count, 0, PAGE_SIZE)) - 1; }

  float raise(int64_t m, float maximum, State<T>& state) const {
    const float before = state.maxima[m];
    const Floats factor = exp2(all(before - maximum));
    store(&state.totals[m * LANES], load_floats(&state.totals[m * LANES]) * factor);
    for (int64_t i = 0; i < state.stride; i += LANES) {
      float* sums = &state.sums[m * state.stride + i];
      store(sums, load_floats(sums) * factor);
    }
    state.maxima[m] = maximum;
    return maximum;
  }

  // Only words that hold keys of the unit are read, and of a word that holds another key as well only the one half: the
  // other may be anything, and 0 x NaN is NaN.
  void gather_values(const Unit& unit, int64_t first_key, const T* values, const T* next_values,
                     State<T>& state) const {
    const int64_t from = std::max<int64_t>(0, unit.first_key - first_key);
    const int64_t to = std::min(PAGE_SIZE, unit.last_key - first_key);
    const int64_t first = (from + P::PER_WORD - 1) / P::PER_WORD, last = to / P::PER_WORD;
    if (from % P::PER_WORD != 0) add_half(values, first - 1, LATER, state);
    add_words(values, first, last, bytes_between(values, next_values), state);
    if (to % P::PER_WORD != 0) add_half(values, last, EARLIER, state);
  }
  void add_words(const T* values, int64_t first, int64_t last, ptrdiff_t distance, State<T>& state) const {
    int64_t d = 0;
    for (; d + VALUE_VECTORS * LANES <= layer_.value_dim; d += VALUE_VECTORS * LANES) {
      add_columns<VALUE_VECTORS>(values, d, first, last, distance, state);
    }
    for (; d + LANES <= layer_.value_dim; d += LANES) add_columns<1>(values, d, first, last, distance, state);
    if (d < layer_.value_dim) add_some(values, d, first, last, BOTH, state);
  }

  template <int V>
  void add_columns(const T* values, int64_t d, int64_t first, int64_t last, ptrdiff_t distance, State<T>& state) const {
    for_rows<VALUE_ROWS>(0, state.num_rows, [&]<int M>(int64_t m) {
      auto* add = m == 0 ? add_values<T, M, V, true> : add_values<T, M, V, false>;
      add(&state.weights[m * PAGE_SIZE / P::PER_WORD], values + d * P::PER_WORD, layer_.value_dim, first, last,
          distance, &state.sums[m * state.stride + d], state.stride);
    });
  }

  void add_half(const T* values, int64_t word, uint32_t kept, State<T>& state) const {
    for (int64_t d = 0; d < layer_.value_dim; d += LANES) add_some(values, d, word, word + 1, kept, state);
  }

  void add_some(const T* values, int64_t d, int64_t first, int64_t last, uint32_t kept, State<T>& state) const {
    const int count = static_cast<int>(std::min<int64_t>(LANES, layer_.value_dim - d));
    for (int64_t m = 0; m < state.num_rows; ++m) {
      add_some_values<T>(&state.weights[m * PAGE_SIZE / P::PER_WORD], values + d * P::PER_WORD, layer_.value_dim, first,
                         last, kept, count, &state.sums[m * state.stride + d]);
    }
  }

  void finish(const Unit& unit, int64_t head, const State<T>& state) const {
    for (int64_t m = 0; m < state.num_rows; ++m) {
      const float total = sum(load_floats(&state.totals[m * LANES]));
      write(unit, head, m, state.maxima[m], total, &state.sums[m * state.stride]);
    }
  }

  void write(const Unit& unit, int64_t head, int64_t m, float maximum, float total, const float* sums) const {
    const int64_t query_head = head * group_ + m % group_;
    float factor = 1.0f;
    if (layer_.sinks != nullptr) {  // one more score, without a value
      const float sink = layer_.sinks[query_head] * LOG2_E, top = std::max(maximum, sink);
      factor = std::exp2(maximum - top);
      total = total * factor + std::exp2(sink - top);
    }
    factor /= total;
    T* out = result_ + ((unit.first_token + m / group_) * layer_.heads + query_head) * layer_.value_dim;
    for_vectors(layer_.value_dim, [&](int64_t i, int n) { store(out + i, load_floats(sums + i) * factor, n); });
  }

  // Partial results: [maximum, total, sums ...] for each row of a split; whoever completes the last one merges them.
  int64_t partial_stride() const { return 2 + (layer_.value_dim + LANES - 1) / LANES * LANES; }
  int64_t partial_size() const { return std::max(BLOCK_ROWS, group_) * partial_stride(); }
  float* partial(const Unit& unit, int64_t split, int64_t head, int64_t m) const {
    const int64_t index = unit.first_partial + split * layer_.kv_heads + head;
    return partials_.get() + index * partial_size() + m * partial_stride();
  }

  void set_aside(const Unit& unit, int64_t head, State<T>& state) {
    for (int64_t m = 0; m < state.num_rows; ++m) {
      float* to = partial(unit, unit.split, head, m);
      to[0] = state.maxima[m];
      to[1] = sum(load_floats(&state.totals[m * LANES]));
      std::memcpy(to + 2, &state.sums[m * state.stride], state.stride * sizeof(float));
    }
    auto& pending = pending_[unit.row * layer_.kv_heads + head];
    if (pending.fetch_sub(1, std::memory_order_acq_rel) == 1) merge(unit, head, state);
  }

  void merge(const Unit& unit, int64_t head, State<T>& state) const {
    for (int64_t m = 0; m < state.num_rows; ++m) {
      float maximum = NOTHING_YET, total = 0.0f;
      for (int64_t s = 0; s < unit.num_splits; ++s) maximum = std::max(maximum, partial(unit, s, head, m)[0]);
      float* sums = &state.sums[m * state.stride];
      std::fill_n(sums, state.stride, 0.0f);
      for (int64_t s = 0; s < unit.num_splits; ++s) {
        const float* from = partial(unit, s, head, m);
        const float factor = std::exp2(from[0] - maximum);
        total += from[1] * factor;
        for (int64_t i = 0; i < state.stride; i += LANES) {
          store(sums + i, load_floats(sums + i) + load_floats(from + 2 + i) * factor);
        }
      }
      write(unit, head, m, maximum, total, sums);
    }
  }

  const Tokens<T>& tokens_;
  const Pages<T> pages_;
  const Step& step_;
  const Layer& layer_;
  T* const result_;
  const int64_t group_;
  const float scale_;  // of scores, into powers of two unless they are capped first
  std::vector<Unit> units_;
  std::vector<int64_t> shared_tokens_;  // several units look at their keys and values
  int64_t num_partials_ = 0;
  std::unique_ptr<float[]> partials_;
  std::vector<std::atomic<int>> pending_;  // [rows][kv_heads]: splits that are not done yet
};

}  // namespace

template <class T>
void attend(Heads<const T> query, Heads<const T> key, Heads<const T> value, const Rope& rope, Pages<T> pages,
            const Step& step, const Layer& layer, T* result) {
  const Tokens<T> tokens(query, key, value, rope, pages, step, layer);
  Attention<T>(tokens, pages, step, layer, result).run();
}

template void attend(Heads<const float>, Heads<const float>, Heads<const float>, const Rope&, Pages<float>, const Step&,
                     const Layer&, float*);
template void attend(Heads<const bf16>, Heads<const bf16>, Heads<const bf16>, const Rope&, Pages<bf16>, const Step&,
                     const Layer&, bf16*);

}  // namespace tokenmill
