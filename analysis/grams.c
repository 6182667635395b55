/* Gram matrices of few rows and very many columns, without the GIL; see grams.py, which compiles it.

   BLAS copies what it multiplies into an order of its own, twice for X X^T, which costs as much as multiplying where
   there are only 64 rows. Here rows stay rows: a block of columns is read once into a buffer that stays in the cache
   (less the first row, which centring undoes), each pair of rows in it is multiplied along memory, T x T pairs at a
   time, so that 2 T loads serve T^2 products. The next block is asked of memory meanwhile.
   float32 within a block, float64 from there on. */

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
enum { LANES = 16, T = 4 };
#elif defined(__AVX__)
enum { LANES = 8, T = 3 };
#elif defined(__aarch64__)
enum { LANES = 4, T = 4 };
#else
enum { LANES = 4, T = 3 };
#endif

/* Without it gcc loads an operand again for each of the T products it is in. */
#if defined(__x86_64__)
#define IN_REGISTER(vector) __asm__("" : "+v"(vector))
#elif defined(__aarch64__)
#define IN_REGISTER(vector) __asm__("" : "+w"(vector))
#else
#define IN_REGISTER(vector)
#endif

enum { LINE = 16, ALIGNMENT = 64, CACHE = 1 << 17, LEAST = 128, MOST = 2048 }; /* floats, bytes, floats, columns */

typedef float lanes __attribute__((vector_size(4 * LANES)));

static int64_t padded(int64_t images) { return (images + T - 1) / T * T; }

/* Columns of a block: half a megabyte of rows, and a stride that spreads them over the sets of the cache. */
static int64_t columns(int64_t images) {
    int64_t fitting = CACHE / padded(images) / LINE * LINE;
    return fitting < LEAST ? LEAST : fitting > MOST ? MOST : fitting;
}

/* floats that gram() wants as scratch */
int64_t gram_scratch(int64_t images) { return padded(images) * (columns(images) + LINE) + ALIGNMENT / 4; }

/* gram[T, T] += rows of a times rows of b, both [T, count] with `stride` floats from row to row */
static void tile(const float *a, const float *b, int64_t stride, int64_t count, double *gram, int64_t images,
                 int64_t down, int64_t across) {
    lanes sums[T][T];
    for (int i = 0; i < T; i++)
        for (int j = 0; j < T; j++) sums[i][j] = (lanes){0};
    for (int64_t at = 0; at < count; at += LANES) {
        lanes left[T];
        for (int i = 0; i < T; i++) {
            left[i] = *(const lanes *)(a + i * stride + at);
            IN_REGISTER(left[i]);
        }
        for (int j = 0; j < T; j++) {
            lanes right = *(const lanes *)(b + j * stride + at);
            IN_REGISTER(right);
            for (int i = 0; i < T; i++) sums[i][j] += left[i] * right;
        }
    }
    for (int i = 0; i < T && down + i < images; i++)
        for (int j = 0; j < T && across + j < images; j++) {
            float sum = 0;
            for (int lane = 0; lane < LANES; lane++) sum += sums[i][j][lane];
            gram[(down + i) * images + across + j] += sum;
        }
}

/* gram[images, images] = (X - x_0) (X - x_0)^T of X [images, features], rows `stride` floats apart */
void gram(const float *rows, int64_t stride, int64_t images, int64_t features, double *gram, float *scratch) {
    const int64_t most = columns(images), pitch = most + LINE, high = padded(images), tiles = high / T;
    float *block = (float *)(((uintptr_t)scratch + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    memset(gram, 0, sizeof(double) * images * images);
    memset(block, 0, sizeof(float) * high * pitch);
    for (int64_t start = 0; start < features; start += most) {
        const float *here = rows + start, *ahead = here + most;
        const int64_t left = features - start, count = left < most ? left : most;
        const int64_t whole = (count + LANES - 1) / LANES * LANES, after = left - count < most ? left - count : most;
        for (int64_t i = 1; i < images; i++) {
            float *to = block + i * pitch;
            for (int64_t j = 0; j < count; j++) to[j] = here[i * stride + j] - here[j];
            for (int64_t j = count; j < whole; j++) to[j] = 0;
        }
        int64_t row = 0, column = 0, share = images * (after / LINE) / (tiles * (tiles + 1) / 2) + 1;
        for (int64_t i = 0; i < high; i += T)
            for (int64_t j = 0; j <= i; j += T) {
                for (int64_t asked = 0; asked < share && row < images && after >= LINE; asked++) {
                    __builtin_prefetch(ahead + row * stride + column, 0, 2);
                    column += LINE;
                    if (column + LINE > after) column = 0, row++;
                }
                tile(block + i * pitch, block + j * pitch, pitch, whole, gram, images, i, j);
            }
    }
    for (int64_t i = 0; i < images; i++)
        for (int64_t j = i + 1; j < images; j++) gram[i * images + j] = gram[j * images + i];
}
