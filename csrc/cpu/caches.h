// Where fetched memory waits for its turn, as __builtin_prefetch counts caches.

namespace args_fast::ARGS_FAST_ISA {
namespace {

// Each weight is used once, so on AMD's processors it goes past all caches but the first: else a model
// would drive out the keys and values, and all that runs between its products. But where x has so many
// rows that they take the first cache, weights would be lost there before their turn. Intel's read at a
// third of their speed that way: there weights wait in the outer caches, and the first one is left to x.
constexpr int FIRST_CACHE = 0, OUTER_CACHES = 2, EVERY_CACHE = 3;
#ifdef ARGS_FAST_PAST_CACHES
constexpr bool PAST_CACHES = true;
#else
constexpr bool PAST_CACHES = false;
#endif
constexpr int WITH_FEW_ROWS = PAST_CACHES ? FIRST_CACHE : OUTER_CACHES;
constexpr int WITH_MANY_ROWS = PAST_CACHES ? EVERY_CACHE : OUTER_CACHES;
constexpr int KEYS_AND_VALUES = WITH_MANY_ROWS;

}  // namespace
}  // namespace args_fast::ARGS_FAST_ISA
