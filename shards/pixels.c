/* The host executor's inner loops: crop, antialiased resize, flips, colours and normalisation of one 8-bit image in one
 * call, without the interpreter. shards/native.py compiles this file and calls it; the same pixels come, more slowly,
 * from torch and NumPy (shards/host_executor.py, shards/host_colours.py), and tests/test_native.py holds them equal.
 *
 * The resize is torch's for uint8 (aten _upsample_bilinear2d_aa): a triangle as wide as the reduction, its weights in
 * double, rounded to 16-bit fixed point, first along rows, then along columns, rounded to a byte after each. Jobs that
 * say `unrounded` (evaluation) keep the weights and all that follows as floats: torch's resize of floats, whose own
 * weights are float32, within .003 levels.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

enum { BRIGHTNESS, CONTRAST, SATURATION, HUE, GRAY, SOLARIZE };
enum { MOST_STEPS = 8, READ_AHEAD = 16 };

typedef struct {
    int32_t cut_top, cut_left, cut_height, cut_width; /* part of the image that is resized; height -1: all of it */
    int32_t full_height, full_width;                  /* what it is resized to */
    int32_t top, left, height, width;                 /* the part of that which is wanted */
    int32_t flip_x, flip_y, unrounded;
    int32_t steps, kind[MOST_STEPS];                  /* colours, in order */
    float factor[MOST_STEPS];
} Job;

typedef struct { /* along one axis */
    int taps, stride, precision;
    int32_t *first; /* [count] first input pixel of each output pixel */
    int16_t *weights; /* [count, stride], zero beyond a pixel's own taps */
    float *unrounded; /* the same before they were rounded; NULL where nobody wants them */
} Axis;

typedef struct { /* float32: levels -> values, a channel at a time */
    const float *table, *mean, *std;
    int by_table;
} Levels;

static int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

static int most_taps(int in, int out) { return out < in ? (int)ceil((double)in / out) * 2 + 1 : 3; }

static int stride_of(int taps) { return (taps + 7) / 8 * 8; }

/* Weights of outputs `start` to `start + count` of a resize from `in` to `out` pixels. */
static void make_axis(Axis *axis, int in, int out, int start, int count, double *exact) {
    double scale = (double)in / out, support = scale >= 1 ? scale : 1, inverse = scale >= 1 ? 1 / scale : 1, most = 0;
    int limit = most_taps(in, out), stride = stride_of(limit);
    axis->taps = 0;
    memset(axis->weights, 0, (size_t)count * stride * sizeof(int16_t));
    for (int i = 0; i < out; i++) {
        double centre = scale * (i + 0.5), total = 0;
        int64_t first = (int64_t)(centre - support + 0.5), end = (int64_t)(centre + support + 0.5);
        first = first < 0 ? 0 : first;
        int n = (int)((end < in ? end : in) - first);
        n = n < 0 ? 0 : n > limit ? limit : n;
        double *w = exact + (int64_t)i * limit;
        for (int j = 0; j < n; j++) {
            double x = fabs((j + first - centre + 0.5) * inverse);
            total += w[j] = x < 1 ? 1 - x : 0;
        }
        for (int j = 0; j < n; j++) {
            if (total != 0) w[j] /= total;
            most = w[j] > most ? w[j] : most;
        }
        if (i >= start && i < start + count) {
            axis->first[i - start] = (int32_t)first;
            axis->taps = n > axis->taps ? n : axis->taps;
            for (int j = n; j < limit; j++) w[j] = 0;
        }
    }
    int precision = 0;
    while (precision < 22 && (int)(0.5 + most * (1 << (precision + 1))) < 1 << 15) precision++;
    for (int i = 0; i < count; i++)
        for (int j = 0; j < axis->taps; j++)
            axis->weights[i * stride + j] = (int16_t)(0.5 + exact[(int64_t)(i + start) * limit + j] * (1 << precision));
    axis->precision = precision;
    axis->stride = stride;
    if (axis->unrounded == NULL) return;
    for (int i = 0; i < count; i++)
        for (int j = 0; j < axis->taps; j++)
            axis->unrounded[i * stride + j] = (float)exact[(int64_t)(i + start) * limit + j];
}

static uint8_t to_byte(int32_t sum) { return sum < 0 ? 0 : sum > 255 ? 255 : (uint8_t)sum; }

/* Two rows of pixels resized to `count` pixels of `step` bytes (three channels take four: r g b 0). */
static void along_rows(const uint8_t *a, const uint8_t *b, uint8_t *to_a, uint8_t *to_b, const Axis *axis, int count,
                       int channels) {
    const int precision = axis->precision, stride = axis->stride;
#ifdef __AVX2__
    const __m256i half = _mm256_set1_epi32(1 << (precision - 1));
    const __m128i shift = _mm_cvtsi32_si128(precision);
    if (channels == 3) {
        const __m256i pair01 = _mm256_broadcastsi128_si256(
            _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
        const __m256i pair23 = _mm256_broadcastsi128_si256(
            _mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
        for (int x = 0; x < count; x++) {
            const uint8_t *from_a = a + 3 * axis->first[x], *from_b = b + 3 * axis->first[x];
            const int16_t *w = axis->weights + x * stride;
            __m256i sum = half;
            for (int j = 0; j < axis->taps; j += 4) {
                __m256i v = _mm256_inserti128_si256(
                    _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(from_a + 3 * j))),
                    _mm_loadu_si128((const __m128i *)(from_b + 3 * j)), 1);
                int64_t four;
                memcpy(&four, w + j, 8);
                __m256i w4 = _mm256_set1_epi64x(four);
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_shuffle_epi8(v, pair01),
                                                              _mm256_shuffle_epi32(w4, 0x00)));
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_shuffle_epi8(v, pair23),
                                                              _mm256_shuffle_epi32(w4, 0x55)));
            }
            sum = _mm256_sra_epi32(sum, shift);
            sum = _mm256_packus_epi32(sum, sum);
            sum = _mm256_packus_epi16(sum, sum);
            int32_t pixel_a = _mm256_extract_epi32(sum, 0), pixel_b = _mm256_extract_epi32(sum, 4);
            memcpy(to_a + 4 * x, &pixel_a, 4);
            memcpy(to_b + 4 * x, &pixel_b, 4);
        }
        return;
    }
    for (int x = 0; x < count; x++) {
        const uint8_t *from_a = a + axis->first[x], *from_b = b + axis->first[x];
        const int16_t *w = axis->weights + x * stride;
        __m256i sum = _mm256_setzero_si256();
        for (int j = 0; j < axis->taps; j += 8) {
            __m128i v = _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i *)(from_a + j)),
                                           _mm_loadl_epi64((const __m128i *)(from_b + j)));
            __m256i w8 = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(w + j)));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_cvtepu8_epi16(v), w8));
        }
        sum = _mm256_hadd_epi32(sum, sum);
        sum = _mm256_hadd_epi32(sum, sum);
        sum = _mm256_sra_epi32(_mm256_add_epi32(sum, half), shift);
        to_a[x] = to_byte(_mm256_extract_epi32(sum, 0));
        to_b[x] = to_byte(_mm256_extract_epi32(sum, 4));
    }
#else
    const int step = channels == 3 ? 4 : 1;
    for (int x = 0; x < count; x++)
        for (int c = 0; c < channels; c++) {
            int32_t sum_a = 1 << (precision - 1), sum_b = sum_a;
            for (int j = 0; j < axis->taps; j++) {
                int32_t at = channels * (axis->first[x] + j) + c, w = axis->weights[x * stride + j];
                if (w == 0) continue;
                sum_a += w * a[at];
                sum_b += w * b[at];
            }
            to_a[step * x + c] = to_byte(sum_a >> precision);
            to_b[step * x + c] = to_byte(sum_b >> precision);
        }
#endif
}

/* One row of `bytes` bytes from `taps` rows that lie `pitch` bytes apart. */
static void along_columns(const uint8_t *from, int64_t pitch, const int16_t *w, int taps, int precision, uint8_t *to,
                          int bytes) {
    int i = 0;
#ifdef __AVX2__
    const __m256i half = _mm256_set1_epi32(1 << (precision - 1));
    const __m128i shift = _mm_cvtsi32_si128(precision);
    for (; i + 16 <= bytes; i += 16) {
        __m256i low = half, high = half;
        for (int j = 0; j < taps; j += 2) { /* weights are zero beyond the taps; their row is another's */
            const uint8_t *row = from + j * pitch + i;
            __m128i a = _mm_loadu_si128((const __m128i *)row);
            __m128i b = j + 1 < taps ? _mm_loadu_si128((const __m128i *)(row + pitch)) : _mm_setzero_si128();
            int32_t two;
            memcpy(&two, w + j, 4);
            __m256i w2 = _mm256_set1_epi32(two);
            low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm_unpacklo_epi8(a, b)), w2));
            high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm_unpackhi_epi8(a, b)), w2));
        }
        __m256i words = _mm256_packus_epi32(_mm256_sra_epi32(low, shift), _mm256_sra_epi32(high, shift));
        words = _mm256_permute4x64_epi64(words, 0xD8);
        _mm_storeu_si128((__m128i *)(to + i), _mm_packus_epi16(_mm256_castsi256_si128(words),
                                                               _mm256_extracti128_si256(words, 1)));
    }
#endif
    for (; i < bytes; i++) {
        int32_t sum = 1 << (precision - 1);
        for (int j = 0; j < taps; j++)
            if (w[j]) sum += w[j] * from[j * pitch + i];
        to[i] = to_byte(sum >> precision);
    }
}

/* One channel of a row of bytes, `step` apart, to normalised floats. */
static void put_bytes(const uint8_t *from, int step, int count, int c, const Levels *levels, int flip, float *to) {
    const float *table = levels->table + 256 * c;
    int x = 0;
#if defined(__AVX2__) && defined(__FMA__)
    if (!levels->by_table) { /* two divisions, each corrected to the last bit, without a divider */
        const __m256 most = _mm256_set1_ps(255), per_most = _mm256_set1_ps(1 / 255.0f);
        const __m256 mean = _mm256_set1_ps(levels->mean[c]), std = _mm256_set1_ps(levels->std[c]);
        const __m256 per_std = _mm256_set1_ps(1 / levels->std[c]);
        const __m256i back = _mm256_setr_epi32(7, 6, 5, 4, 3, 2, 1, 0);
        for (; x + 8 <= count; x += 8) {
            __m256i v = step == 4 ? _mm256_and_si256(_mm256_srl_epi32(_mm256_loadu_si256((const __m256i *)(from + 4 * x)),
                                                                     _mm_cvtsi32_si128(8 * c)),
                                                     _mm256_set1_epi32(255))
                                  : _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(from + x)));
            __m256 level = _mm256_cvtepi32_ps(v), q = _mm256_mul_ps(level, per_most);
            q = _mm256_fmadd_ps(_mm256_fnmadd_ps(q, most, level), per_most, q);
            __m256 centred = _mm256_sub_ps(q, mean), z = _mm256_mul_ps(centred, per_std);
            z = _mm256_fmadd_ps(_mm256_fnmadd_ps(z, std, centred), per_std, z);
            if (flip)
                _mm256_storeu_ps(to + count - 8 - x, _mm256_permutevar8x32_ps(z, back));
            else
                _mm256_storeu_ps(to + x, z);
        }
    }
#endif
    const int offset = step == 4 ? c : 0;
    for (; x < count; x++) to[flip ? count - 1 - x : x] = table[from[step * x + offset]];
}

/* Colours act on rows of whole levels 0..255 kept as floats, red, green and blue apart, as torchvision's on uint8:
 * clipped and truncated after each step. The order of operations is that of host_colours.py, to the bit. */
static inline float within(float v, float low, float high) { return fminf(fmaxf(v, low), high); }

static inline float clipped(float v) { return (float)(int32_t)within(v, 0.0f, 255.0f); }

static inline float luma(float r, float g, float b) {
    return (float)(int32_t)(0.2989f * r + 0.587f * g + 0.114f * b);
}

static void blend_with(float *restrict v, int n, float factor, float added) {
    for (int x = 0; x < n; x++) v[x] = clipped(factor * v[x] + added);
}

static void saturate(float *restrict r, float *restrict g, float *restrict b, int n, float factor, float rest) {
    for (int x = 0; x < n; x++) {
        float gray = rest * luma(r[x], g[x], b[x]);
        r[x] = clipped(factor * r[x] + gray);
        g[x] = clipped(factor * g[x] + gray);
        b[x] = clipped(factor * b[x] + gray);
    }
}

static void make_gray(float *restrict r, float *restrict g, float *restrict b, int n) {
    for (int x = 0; x < n; x++) r[x] = g[x] = b[x] = luma(r[x], g[x], b[x]);
}

/* With M = max, C = M - min and the hue h in sixths, channel n of (5, 3, 1) is M - C clamp(min(k, 4 - k), 0, 1), where
 * k = (n + h + 6 turns) mod 6: HSV there and back. */
static inline float turned(float hue, float n, float most, float chroma) {
    float k = hue + n;
    k = k - 6.0f * (float)(int32_t)(k * (1.0f / 6.0f));
    float part = within(fminf(k, 4.0f - k), 0.0f, 1.0f);
    return (float)(int32_t)((most - chroma * part) * (255.999f / 255.0f));
}

static void turn_hue(float *restrict r, float *restrict g, float *restrict b, int n, float sixths) {
    for (int x = 0; x < n; x++) {
        float red = r[x], green = g[x], blue = b[x];
        float most = fmaxf(fmaxf(red, green), blue), least = fminf(fminf(red, green), blue);
        float chroma = most - least, safe = fmaxf(chroma, 1.0f);
        float by_blue = (red - green) / safe + 4.0f, by_green = (blue - red) / safe + 2.0f, by_red = (green - blue) / safe;
        float hue = (most == red ? by_red : most == green ? by_green : by_blue) + sixths;
        r[x] = turned(hue, 5.0f, most, chroma);
        g[x] = turned(hue, 3.0f, most, chroma);
        b[x] = turned(hue, 1.0f, most, chroma);
    }
}

static void solarize(float *restrict v, int n, float threshold) {
    for (int x = 0; x < n; x++) v[x] = v[x] >= threshold ? 255 - v[x] : v[x];
}

static void apply_step(int kind, float factor, float middle, float *planes, int pitch, int n, int channels) {
    float *r = planes, *g = planes + pitch, *b = planes + 2 * pitch;
    if (kind == BRIGHTNESS || kind == CONTRAST)
        for (int c = 0; c < channels; c++) blend_with(planes + c * pitch, n, factor, kind == CONTRAST ? middle : 0.0f);
    else if (kind == SOLARIZE)
        for (int c = 0; c < channels; c++) solarize(planes + c * pitch, n, factor);
    else if (channels == 3 && kind == SATURATION)
        saturate(r, g, b, n, factor, 1 - factor);
    else if (channels == 3 && kind == HUE)
        turn_hue(r, g, b, n, factor);
    else if (channels == 3 && kind == GRAY)
        make_gray(r, g, b, n);
}

/* Three channels lie in words, r in the lowest byte. */
static void bytes_to_planes(const uint8_t *row, float *restrict planes, int pitch, int n, int channels) {
    float *restrict r = planes, *restrict g = planes + pitch, *restrict b = planes + 2 * pitch;
    const int32_t *restrict words = (const int32_t *)row;
    if (channels == 1)
        for (int x = 0; x < n; x++) r[x] = row[x];
    else
        for (int x = 0; x < n; x++) {
            r[x] = (float)(words[x] & 255);
            g[x] = (float)(words[x] >> 8 & 255);
            b[x] = (float)(words[x] >> 16 & 255);
        }
}

static void planes_to_bytes(const float *restrict planes, int pitch, uint8_t *row, int n, int channels) {
    const float *restrict r = planes, *restrict g = planes + pitch, *restrict b = planes + 2 * pitch;
    int32_t *restrict words = (int32_t *)row;
    if (channels == 1)
        for (int x = 0; x < n; x++) row[x] = (uint8_t)(int32_t)r[x];
    else
        for (int x = 0; x < n; x++) words[x] = (int32_t)r[x] | (int32_t)g[x] << 8 | (int32_t)b[x] << 16;
}

static int32_t gray_sum(const uint8_t *row, int n, int channels) {
    const int32_t *words = (const int32_t *)row;
    int32_t sum = 0;
    if (channels == 1)
        for (int x = 0; x < n; x++) sum += row[x];
    else
        for (int x = 0; x < n; x++) {
            int32_t w = words[x];
            sum += (int32_t)luma((float)(w & 255), (float)(w >> 8 & 255), (float)(w >> 16 & 255));
        }
    return sum;
}

/* All steps, in place; contrast wants the mean of the whole truncated grey image, so the rows are walked anew there. */
static void colour(const Job *job, uint8_t *image, int step, int channels, float *planes, int pitch) {
    int n = job->width, done = 0;
    while (done < job->steps) {
        float middle = 0;
        if (job->kind[done] == CONTRAST) {
            int64_t total = 0;
            for (int y = 0; y < job->height; y++) total += gray_sum(image + (int64_t)y * n * step, n, channels);
            middle = (1 - job->factor[done]) * (float)((double)total / ((double)n * job->height));
        }
        int end = done + 1;
        while (end < job->steps && job->kind[end] != CONTRAST) end++;
        for (int y = 0; y < job->height; y++) {
            uint8_t *row = image + (int64_t)y * n * step;
            bytes_to_planes(row, planes, pitch, n, channels);
            for (int i = done; i < end; i++)
                apply_step(job->kind[i], job->factor[i], middle, planes, pitch, n, channels);
            planes_to_bytes(planes, pitch, row, n, channels);
        }
        done = end;
    }
}

typedef struct { /* where each part of the scratch memory lies, and its size */
    int64_t first_x, first_y, weights_x, weights_y, exact, row, narrow, image, planes, bytes;
    int64_t floats_x, floats_y, line, wide; /* of unrounded jobs alone */
} Layout;

static Layout lay_out(const Job *job, int cut_height, int cut_width, int channels) {
    const int step = channels == 3 ? 4 : 1, taps_x = most_taps(cut_width, job->full_width);
    const int taps_y = most_taps(cut_height, job->full_height);
    int64_t exact_x = (int64_t)job->full_width * taps_x, exact_y = (int64_t)job->full_height * taps_y, at = 0;
    Layout lay;
#define TAKE(part, size) lay.part = at, at += aligned(size)
    TAKE(first_x, 4 * (int64_t)job->width);
    TAKE(first_y, 4 * (int64_t)job->height);
    TAKE(weights_x, 2 * (int64_t)job->width * stride_of(taps_x));
    TAKE(weights_y, 2 * (int64_t)job->height * stride_of(taps_y));
    TAKE(exact, 8 * (exact_x > exact_y ? exact_x : exact_y));
    TAKE(row, 2 * ((int64_t)cut_width * channels + 12 * (int64_t)taps_x + 2 * READ_AHEAD));
    TAKE(narrow, ((int64_t)cut_height + 1) * job->width * step + 2 * READ_AHEAD);
    TAKE(image, (int64_t)job->height * job->width * step + 2 * READ_AHEAD);
    TAKE(planes, 4 * 3 * ((int64_t)job->width + 16));
    if (job->unrounded) {
        TAKE(floats_x, 4 * (int64_t)job->width * stride_of(taps_x));
        TAKE(floats_y, 4 * (int64_t)job->height * stride_of(taps_y));
        TAKE(line, 4 * ((int64_t)cut_width + taps_x + 4) * channels);
        TAKE(wide, 4 * 4 * (int64_t)job->width);
    }
#undef TAKE
    lay.bytes = at;
    return lay;
}

/* Rows `first` to `end` of the cut, resized along x, into `narrow`. */
static void narrow_rows(const Job *job, const uint8_t *image, int height, int width, int channels, const uint8_t *cut,
                       int cut_width, const Axis *x, int first, int end, uint8_t *narrow, uint8_t *spare) {
    const int step = channels == 3 ? 4 : 1;
    const int64_t pitch = (int64_t)width * channels, out_pitch = (int64_t)job->width * step;
    const uint8_t *stop = image + (int64_t)height * pitch;
    const int64_t reach = (int64_t)(cut_width + x->taps) * channels + READ_AHEAD + 12;
    const int64_t spare_pitch = (int64_t)cut_width * channels + 12 * (int64_t)x->taps + 2 * READ_AHEAD;
    for (int y = first; y < end; y += 2) {
        const uint8_t *rows[2];
        for (int k = 0; k < 2; k++) {
            rows[k] = cut + (y + k < end ? y + k : y) * pitch;
            if (rows[k] + reach > stop) { /* reading ahead would leave the image */
                uint8_t *copy = spare + k * spare_pitch;
                memcpy(copy, rows[k], (size_t)cut_width * channels);
                rows[k] = copy;
            }
        }
        uint8_t *to = narrow + (y - first) * out_pitch;
        along_rows(rows[0], rows[1], to, to + out_pitch, x, job->width, channels);
    }
}

typedef float Four __attribute__((vector_size(16)));

/* An output row of floats, four a pixel (lanes beyond the channels hold nothing of use): down the columns into `line`,
 * then along it. */
static void float_row(const uint8_t *from, int64_t pitch, int cut_width, int channels, const Axis *x, const float *down,
                      int taps, int width, float *restrict line, float *restrict wide) {
    const int begin = channels * x->first[0], reach = x->first[width - 1] + x->taps;
    const int end = channels * (reach < cut_width ? reach : cut_width);
    for (int i = begin; i < end; i++) line[i] = down[0] * from[i];
    for (int j = 1; j < taps; j++) {
        const uint8_t *restrict row = from + j * pitch;
        const float w = down[j];
        for (int i = begin; i < end; i++) line[i] += w * row[i];
    }
    for (int at = 0; at < width; at++) {
        const float *w = x->unrounded + at * x->stride, *pixel = line + channels * x->first[at];
        Four sum = {0}, next;
        for (int j = 0; j < x->taps; j++) {
            memcpy(&next, pixel + channels * j, sizeof next);
            sum += w[j] * next;
        }
        memcpy(wide + 4 * at, &sum, sizeof sum);
    }
}

/* One channel of such a row, normalised as torchvision does. */
static void put_floats(const float *restrict wide, int count, int c, const Levels *levels, int flip,
                       float *restrict to) {
    const float mean = levels->mean[c], std = levels->std[c];
    if (flip)
        for (int x = 0; x < count; x++) to[count - 1 - x] = (wide[4 * x + c] / 255.0f - mean) / std;
    else
        for (int x = 0; x < count; x++) to[x] = (wide[4 * x + c] / 255.0f - mean) / std;
}

/* One uint8 image [height, width, channels], rows without gaps, through one job to float32 planes [channels, job height,
 * job width]. 0; -1 where the job does not fit the image; or the bytes of scratch memory that it wants more than has. */
int64_t pixels_run(const Job *job, const uint8_t *image, int32_t height, int32_t width, int32_t channels,
                   const float *table, const float *mean, const float *std, int32_t by_table, float *out,
                   uint8_t *scratch, int64_t scratch_bytes) {
    const int whole = job->cut_height < 0, step = channels == 3 ? 4 : 1;
    const int cut_height = whole ? height : job->cut_height, cut_width = whole ? width : job->cut_width;
    const int cut_top = whole ? 0 : job->cut_top, cut_left = whole ? 0 : job->cut_left;
    if (cut_top < 0 || cut_left < 0 || cut_height < 1 || cut_width < 1 || cut_top > height - cut_height ||
        cut_left > width - cut_width || job->top < 0 || job->left < 0 || job->height < 1 || job->width < 1 ||
        job->top > job->full_height - job->height || job->left > job->full_width - job->width ||
        job->steps < 0 || job->steps > (job->unrounded ? 0 : MOST_STEPS) || (channels != 1 && channels != 3))
        return -1;
    Layout lay = lay_out(job, cut_height, cut_width, channels);
    uint8_t *base = (uint8_t *)(((uintptr_t)scratch + 63) / 64 * 64);
    if (lay.bytes + 64 > scratch_bytes) return lay.bytes + 64;
    Axis x = {.first = (int32_t *)(base + lay.first_x), .weights = (int16_t *)(base + lay.weights_x)};
    Axis y = {.first = (int32_t *)(base + lay.first_y), .weights = (int16_t *)(base + lay.weights_y)};
    const int changed = job->unrounded && (job->full_height != cut_height || job->full_width != cut_width);
    if (changed) {
        x.unrounded = (float *)(base + lay.floats_x);
        y.unrounded = (float *)(base + lay.floats_y);
    }
    make_axis(&x, cut_width, job->full_width, job->left, job->width, (double *)(base + lay.exact));
    make_axis(&y, cut_height, job->full_height, job->top, job->height, (double *)(base + lay.exact));
    const int64_t plane = (int64_t)job->height * job->width;
    Levels levels = {table, mean, std, by_table};
    const uint8_t *cut = image + ((int64_t)cut_top * width + cut_left) * channels;
    if (changed) {
        float *line = (float *)(base + lay.line), *wide = (float *)(base + lay.wide);
        const int64_t pitch = (int64_t)width * channels;
        memset(line, 0, 4 * ((size_t)cut_width + x.taps + 4) * channels); /* what lies beyond gets weights of 0 */
        for (int row = 0; row < job->height; row++) {
            int taps = cut_height - y.first[row] < y.taps ? cut_height - y.first[row] : y.taps;
            float_row(cut + y.first[row] * pitch, pitch, cut_width, channels, &x, y.unrounded + (int64_t)row * y.stride,
                      taps, job->width, line, wide);
            for (int c = 0; c < channels; c++)
                put_floats(wide, job->width, c, &levels, job->flip_x,
                           out + c * plane + (int64_t)(job->flip_y ? job->height - 1 - row : row) * job->width);
        }
        return 0;
    }
    int first = y.first[0], last = y.first[job->height - 1] + y.taps;
    uint8_t *narrow = base + lay.narrow, *done = base + lay.image;
    narrow_rows(job, image, height, width, channels, cut, cut_width, &x, first, last < cut_height ? last : cut_height,
                narrow, base + lay.row);
    const int bytes = job->width * step;
    for (int row = 0; row < job->height; row++) {
        uint8_t *to = done + (job->steps ? (int64_t)row * bytes : 0);
        int taps = cut_height - y.first[row] < y.taps ? cut_height - y.first[row] : y.taps;
        along_columns(narrow + (int64_t)(y.first[row] - first) * bytes, bytes, y.weights + (int64_t)row * y.stride, taps,
                      y.precision, to, bytes);
        if (job->steps) continue;
        for (int c = 0; c < channels; c++)
            put_bytes(to, step, job->width, c, &levels, job->flip_x,
                      out + c * plane + (int64_t)(job->flip_y ? job->height - 1 - row : row) * job->width);
    }
    if (job->steps == 0) return 0;
    colour(job, done, step, channels, (float *)(base + lay.planes), job->width + 16);
    for (int row = 0; row < job->height; row++)
        for (int c = 0; c < channels; c++)
            put_bytes(done + (int64_t)row * bytes, step, job->width, c, &levels, job->flip_x,
                      out + c * plane + (int64_t)(job->flip_y ? job->height - 1 - row : row) * job->width);
    return 0;
}

/* `count` images, each through its own job; sizes are pairs of height and width. Stops at the first that does not end in
 * 0 and says its answer; `done` counts those before it, and a call may begin there. */
int64_t pixels_run_all(const Job *jobs, const uint8_t *const *images, const int32_t *sizes, float *const *outs,
                       int64_t count, int64_t *done, int32_t channels, const float *table, const float *mean,
                       const float *std, int32_t by_table, uint8_t *scratch, int64_t scratch_bytes) {
    for (; *done < count; ++*done) {
        int64_t i = *done, answer = pixels_run(jobs + i, images[i], sizes[2 * i], sizes[2 * i + 1], channels, table, mean,
                                               std, by_table, outs[i], scratch, scratch_bytes);
        if (answer) return answer;
    }
    return 0;
}
