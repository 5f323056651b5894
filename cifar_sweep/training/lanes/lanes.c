/* The convolutions of several networks of one shape, forward and backward, with the networks in the lanes of vectors.
 *
 * Compiled with LANES (8 or 16 networks to a vector of 32-bit words) and PACK: 1 is float32, 2 is bf16, of which a word
 * holds two. A stage is a convolution of stride 1 with what follows it: z = conv(x) + bias; u = z, or where batch norm
 * comes last act(z) * mask; v = norm(u); then the greatest v of each window of two by two; then, where batch norm comes
 * first, act(v) * mask. Any of norm, mask, pooling and activation (slope 1) may be missing.
 *
 * Layouts, outermost first. A word is of LANES members, and of PACK channels, or for the weights' gradient of PACK
 * images:
 *   x      [image][padded y][padded x][channels / PACK], the border 0; of the first stage, whose images the members
 *          share, single numbers [image][padded y][padded x][channel]
 *   z      [image][y][x][channels / PACK], and so is the gradient of a stage's outcome
 *   dz     as z, padded for the convolution that gives the gradient of x; of PACK images at a time
 *   wf     [tile of output channels][ky][words of kx and input channels][output channel in the tile]
 *   wb     likewise for x's gradient, mirrored: [tile of input channels][ky][kx and output channels][input channel]
 *   dw     [tile of output channels][tile of input channels][ky][kx][output channel][input channel], float32
 * A lane does what it would do in any other place, whoever is in the others.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if PACK == 2
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define MAX_STAGES 8
#define EVEN(channels) (((channels) + 1) & ~1)
#define WORDS(channels) (EVEN(channels) / PACK)
#define SHARED_WORDS(numbers) (((numbers) + PACK - 1) / PACK)
#define NUMBER (4 / PACK) /* bytes */
/* Registers that hold a vector of LANES words: AVX2 has 16, and so has NEON in pairs. The sums of an inner loop must leave
 * some for what it loads. */
#ifdef __AVX512VL__
#define REGISTERS 32
#else
#define REGISTERS 16
#endif
#define BAND 1000 /* words of x that some rows of a convolution begin in: what they read stays in a near cache */

/* As in compiled.py. Weights and the like are places in a member's row of parameters; bias is -1 where there is none. */
typedef struct {
    int32_t ci, co, k, pad, hi, wi, ho, wo, hq, wq; /* channels, kernel, padding; sizes of x, z and what comes out */
    int32_t pool, norm, after, mask;                /* whether there is; after: norm comes after activation and mask */
    float slope, momentum, eps;
    int32_t weight, bias, gamma, beta;
} Stage;
typedef struct { int32_t stages, batch; Stage stage[MAX_STAGES]; } Net;
typedef struct {
    char *arena;        /* lanes_bytes of memory, 0 at first, aligned to 64 */
    const void *images; /* [image][y][x][channel] */
    void *features;     /* forward: what comes out, [member][image][channel, y, x]; backward: its gradient */
    const float *rows;  /* the members' parameters, `stride` numbers apart */
    float *gradients;
    int64_t stride;
    int32_t members, count, training; /* count is of images */
    float *running_mean[MAX_STAGES], *running_var[MAX_STAGES]; /* [member][channel] */
    const float *masks[MAX_STAGES];                            /* [member][image][channel], or null */
} Call;

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));

/* ---- Words ---- */

INLINE vf dot(vf sum, vu x, vu w) {
#if PACK == 1
    return sum + (vf)x * (vf)w;
#elif LANES == 16
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
#else
    return (vf)_mm256_dpbf16_ps((__m256)sum, (__m256bh)x, (__m256bh)w);
#endif
}

INLINE vf get(vu word, int half) {
    if (PACK == 1) return (vf)word;
    return half ? (vf)(word & 0xffff0000u) : (vf)(word << 16);
}

INLINE vu put(const vf *halves) { /* bf16 is rounded to, ties to even */
#if PACK == 1
    return (vu)halves[0];
#elif LANES == 16
    static const uint16_t order[32] __attribute__((aligned(64))) = {
        0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31,
    };
    __m512i behind = (__m512i)_mm512_cvtne2ps_pbh((__m512)halves[1], (__m512)halves[0]);
    return (vu)_mm512_permutexvar_epi16(*(const __m512i *)order, behind);
#else
    static const uint16_t order[16] __attribute__((aligned(32))) = {
        0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15,
    };
    __m256i behind = (__m256i)_mm256_cvtne2ps_pbh((__m256)halves[1], (__m256)halves[0]);
    return (vu)_mm256_permutexvar_epi16(*(const __m256i *)order, behind);
#endif
}

INLINE void put_lane(vu *word, int lane, int half, float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (PACK == 1) ((uint32_t *)word)[lane] = bits;
    else ((uint16_t *)word)[2 * lane + half] = (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

INLINE vf pick(vi mask, vf yes, vf no) { return (vf)(((vu)mask & (vu)yes) | (~(vu)mask & (vu)no)); }
INLINE vf act(vf v, float slope) { return pick(v > 0, v, v * slope); }
INLINE vf act_gradient(vf v, float slope) { return pick(v > 0, (vf){} + 1.0f, (vf){} + slope); }

/* Channels are worked on in tiles of 4, with one of 6 or 2 first. */
INLINE int tile_of(int channels) { return channels % 4 == 0 ? 4 : channels >= 6 ? 6 : 2; }

/* ---- Memory ---- */

typedef struct {
    vu *x, *z, *wf, *wb, *dz;
    char *images;
    vf *bias, *gamma, *beta, *mean, *inverse, *scale, *shift, *s1, *s2, *db; /* by channel */
    vf *row, *dw, *mask; /* row: sums over one, 0 between uses; mask [image][channel] */
} Buffers;
typedef struct { Buffers stage[MAX_STAGES]; vu *gradient[2], *dz_pairs, *x_pairs; } Arena;

static size_t larger(size_t one, size_t other) { return one > other ? one : other; }

/* Lay out the arena that begins at `base`; returns its size. */
static size_t lay_out(const Net *net, char *base, Arena *arena) {
    size_t used = 0, outcome = 0, dz_pairs = 0, x_pairs = 0, batch = net->batch;
#define TAKE(pointer, bytes) \
    do { (pointer) = (void *)(base + used); used += ((size_t)(bytes) + 127) / 64 * 64; } while (0)
    for (int s = 0; s < net->stages; s++) {
        const Stage *st = &net->stage[s];
        Buffers *b = &arena->stage[s];
        size_t pixels = (size_t)(st->hi + 2 * st->pad) * (st->wi + 2 * st->pad), q = st->k - 1 - st->pad;
        size_t in = WORDS(st->ci), out = WORDS(st->co), co = EVEN(st->co), ci = EVEN(st->ci);
        size_t z = (size_t)st->ho * st->wo, row = s ? st->k * in : (size_t)SHARED_WORDS(st->k * st->ci);
        if (s) TAKE(b->x, batch * pixels * in * sizeof(vu));
        else TAKE(b->images, batch * pixels * st->ci * NUMBER + 4);
        TAKE(b->z, batch * z * out * sizeof(vu));
        TAKE(b->wf, co * st->k * row * sizeof(vu));
        TAKE(b->wb, ci * st->k * st->k * out * sizeof(vu));
        TAKE(b->dz, PACK * (st->ho + 2 * q) * (st->wo + 2 * q) * out * sizeof(vu));
        vf **each[] = {
            &b->bias, &b->gamma, &b->beta, &b->mean, &b->inverse, &b->scale, &b->shift, &b->s1, &b->s2, &b->db,
            &b->row,
        };
        for (size_t i = 0; i < sizeof each / sizeof *each; i++) TAKE(*each[i], co * sizeof(vf));
        TAKE(b->dw, co * ci * st->k * st->k * sizeof(vf));
        TAKE(b->mask, batch * co * sizeof(vf));
        outcome = larger(outcome, batch * st->hq * st->wq * out);
        dz_pairs = larger(dz_pairs, z * co);
        x_pairs = larger(x_pairs, pixels * ci);
    }
    TAKE(arena->gradient[0], outcome * sizeof(vu));
    TAKE(arena->gradient[1], outcome * sizeof(vu));
    TAKE(arena->dz_pairs, dz_pairs * sizeof(vu));
    TAKE(arena->x_pairs, x_pairs * sizeof(vu));
#undef TAKE
    return used;
}

/* ---- Parameters ---- */

static void pack_weights(const Stage *st, const Buffers *b, int first, const Call *call) {
    int ci = st->ci, co = st->co, k = st->k, in = WORDS(ci), out = WORDS(co);
    int row = first ? SHARED_WORDS(k * ci) : k * in;
    const float *weight = call->rows + st->weight;
    vu *w = b->wf;
    for (int o0 = 0, to; o0 < EVEN(co); o0 += to) {
        to = tile_of(EVEN(co) - o0);
        for (int ky = 0; ky < k; ky++)
            for (int j = 0; j < row; j++)
                for (int o = o0; o < o0 + to; o++, w++)
                    for (int half = 0; half < PACK; half++) {
                        int at = j * PACK + half; /* of shared images, numbers of kx and channel on end */
                        int kx = first ? at / ci : j / in, i = first ? at % ci : j % in * PACK + half;
                        if (o >= co || i >= ci || kx >= k) continue; /* 0 from the start */
                        const float *from = weight + ((size_t)(o * ci + i) * k + ky) * k + kx;
                        for (int l = 0; l < call->members; l++) put_lane(w, l, half, from[l * call->stride]);
                    }
    }
    w = b->wb;
    for (int i0 = 0, ti; i0 < EVEN(ci) && !first; i0 += ti) {
        ti = tile_of(EVEN(ci) - i0);
        for (int at = k * k - 1; at >= 0; at--)
            for (int word = 0; word < out; word++)
                for (int i = i0; i < i0 + ti; i++, w++)
                    for (int half = 0, o = word * PACK; half < PACK; half++, o++) {
                        if (o >= co || i >= ci) continue;
                        const float *from = weight + (size_t)(o * ci + i) * k * k + at;
                        for (int l = 0; l < call->members; l++) put_lane(w, l, half, from[l * call->stride]);
                    }
    }
    for (int o = 0; o < co; o++)
        for (int l = 0; l < call->members; l++) {
            const float *row_of = call->rows + l * call->stride;
            if (st->bias >= 0) b->bias[o][l] = row_of[st->bias + o];
            if (st->norm) b->gamma[o][l] = row_of[st->gamma + o], b->beta[o][l] = row_of[st->beta + o];
        }
}

static void unpack_gradients(const Stage *st, const Buffers *b, int first, const Call *call) {
    int k = st->k, ci = first ? st->ci : EVEN(st->ci);
    const vf *sums = b->dw;
    for (int o0 = 0, to; o0 < EVEN(st->co); o0 += to) {
        to = tile_of(EVEN(st->co) - o0);
        for (int i0 = 0, ti; i0 < ci; i0 += ti) {
            ti = first ? ci : tile_of(ci - i0);
            for (int at = 0; at < k * k; at++)
                for (int o = o0; o < o0 + to; o++)
                    for (int i = i0; i < i0 + ti; i++, sums++) {
                        if (o >= st->co || i >= st->ci) continue;
                        float *into = call->gradients + st->weight + (size_t)(o * st->ci + i) * k * k + at;
                        for (int l = 0; l < call->members; l++) into[l * call->stride] = (*sums)[l];
                    }
        }
    }
    for (int o = 0; o < st->co; o++)
        for (int l = 0; l < call->members; l++) {
            float *row = call->gradients + l * call->stride;
            if (st->bias >= 0) row[st->bias + o] = b->db[o][l];
            if (st->norm) row[st->beta + o] = b->s1[o][l], row[st->gamma + o] = b->s2[o][l];
        }
}

/* ---- Convolution: z, and the gradient of x ---- */

typedef struct {
    const char *x;            /* where the output's first pixel begins to read */
    ptrdiff_t pixel, row;     /* bytes from one to the next */
    int k, words, h, w, co;   /* kernel rows, words in a kernel row, the output's size */
    const vu *weights;
    const vf *bias;           /* null is 0 */
    vu *out;                  /* [y][x][channels / PACK] */
    vf *sum, *square, *first; /* of u less its first value, for batch norm; null is for none */
    int begin;                /* whether the first values are still to be taken */
    const vf *mask;
    int after;
    float slope;
} Conv;

INLINE vf before_norm(vf z, vf mask, float slope, int after) { return after ? act(z, slope) * mask : z; }

/* PIXELS by CHANNELS numbers of the output. With SHARED, x is the same for all lanes. */
INLINE void conv_block(
    const Conv *c, const vu *w, const char *x, vu *out, int o0, const int PIXELS, const int CHANNELS, const int SHARED,
    vf *sum, vf *square
) {
    vf acc[4][6];
    for (int p = 0; p < PIXELS; p++)
        for (int o = 0; o < CHANNELS; o++) acc[p][o] = c->bias ? c->bias[o0 + o] : (vf){};
    const ptrdiff_t skip = c->row - (ptrdiff_t)c->words * 4 * (SHARED ? 1 : LANES);
    for (int n = c->k * c->words, left = c->words; n; n--, w += CHANNELS) { /* one long loop, not one for each row */
        vu from[4];
        for (int p = 0; p < PIXELS; p++) {
            if (SHARED) {
                uint32_t one;
                memcpy(&one, x + p * c->pixel, 4);
                from[p] = (vu){} + one;
            } else from[p] = *(const vu *)(x + p * c->pixel);
        }
        for (int o = 0; o < CHANNELS; o++)
            for (int p = 0; p < PIXELS; p++) acc[p][o] = dot(acc[p][o], from[p], w[o]);
        ptrdiff_t more = --left ? 0 : skip;
        left = left ? left : c->words;
        x += (SHARED ? 4 : (ptrdiff_t)sizeof(vu)) + more;
    }
    for (int p = 0; p < PIXELS; p++)
        for (int o = 0; o < CHANNELS; o += PACK) {
            vu word = put(&acc[p][o]);
            out[p * WORDS(c->co) + (o0 + o) / PACK] = word;
            for (int half = 0; half < PACK && sum; half++) {
                int at = o0 + o + half;
                vf u = before_norm(get(word, half), c->mask[at], c->slope, c->after) - c->first[at];
                sum[o + half] += u;
                square[o + half] += u * u;
            }
        }
}

INLINE void conv_row(
    const Conv *c, const vu *w, int y, int o0, int width, const int CHANNELS, const int SHARED, vf *sum, vf *square
) {
    const char *x = c->x + y * c->row;
    vu *out = c->out + (size_t)y * c->w * WORDS(c->co);
    const int PIXELS = REGISTERS == 32 ? 4 : CHANNELS == 6 ? 2 : 3;
    int p = 0;
    for (; p + PIXELS <= width; p += PIXELS)
        conv_block(c, w, x + p * c->pixel, out + p * WORDS(c->co), o0, PIXELS, CHANNELS, SHARED, sum, square);
    if (width - p >= 2) {
        conv_block(c, w, x + p * c->pixel, out + p * WORDS(c->co), o0, 2, CHANNELS, SHARED, sum, square);
        p += 2;
    }
    for (; p < width; p++)
        conv_block(c, w, x + p * c->pixel, out + p * WORDS(c->co), o0, 1, CHANNELS, SHARED, sum, square);
}

INLINE void conv_tile(
    const Conv *c, const vu *w, int y0, int y1, int o0, const int CHANNELS, const int SHARED, const int SUMS
) {
    vf sum[6] = {}, square[6] = {};
    if (SUMS && c->begin && !y0) {
        conv_row(c, w, 0, o0, 1, CHANNELS, SHARED, 0, 0);
        for (int o = o0; o < o0 + CHANNELS; o++)
            c->first[o] = before_norm(get(c->out[o / PACK], o % PACK), c->mask[o], c->slope, c->after);
    }
    for (int y = y0; y < y1; y++)
        conv_row(c, w, y, o0, c->w, CHANNELS, SHARED, SUMS ? sum : 0, SUMS ? square : 0);
    for (int o = 0; o < CHANNELS && SUMS; o++) c->sum[o0 + o] += sum[o], c->square[o0 + o] += square[o];
}

INLINE void conv_kind(const Conv *c, const int SHARED, const int SUMS) {
    int band = (int)(BAND * (SHARED ? 4 : sizeof(vu)) / c->row); /* the same for all LANES, and so are the sums */
    if (band < 1) band = 1;
    for (int y = 0; y < c->h; y += band) {
        const vu *w = c->weights;
        int until = y + band < c->h ? y + band : c->h;
        for (int o0 = 0, to; o0 < EVEN(c->co); o0 += to) {
            to = tile_of(EVEN(c->co) - o0);
            if (to == 4) conv_tile(c, w, y, until, o0, 4, SHARED, SUMS);
            else if (to == 6) conv_tile(c, w, y, until, o0, 6, SHARED, SUMS);
            else conv_tile(c, w, y, until, o0, 2, SHARED, SUMS);
            w += (size_t)c->k * c->words * to;
        }
    }
}

static void conv(const Conv *c, int shared) {
    if (shared && c->sum) conv_kind(c, 1, 1);
    else if (shared) conv_kind(c, 1, 0);
    else if (c->sum) conv_kind(c, 0, 1);
    else conv_kind(c, 0, 0);
}

/* ---- Between z and what comes out ---- */

/* What is needed of the two channels of a word. */
typedef struct { vf scale[2], shift[2], mean[2], s1[2], s2[2], mask[2]; float slope; } Channels;

INLINE Channels channels_of(const Stage *st, const Buffers *b, int image, int word) {
    Channels ch = {.slope = st->slope};
    const vf *mask = b->mask + (size_t)image * EVEN(st->co);
    for (int half = 0, o = word * PACK; half < PACK; half++, o++) {
        ch.scale[half] = b->scale[o], ch.shift[half] = b->shift[o], ch.mean[half] = b->mean[o];
        ch.s1[half] = b->s1[o], ch.s2[half] = b->s2[o], ch.mask[half] = mask[o];
    }
    return ch;
}

/* How the compiler is told a stage's kind: NORM is 0 for none, 1 for first, 2 for last. */
INLINE vf u_of(const Channels *ch, int half, vf z, const int NORM) {
    return before_norm(z, ch->mask[half], ch->slope, NORM == 2);
}
INLINE vf v_of(const Channels *ch, int half, vf u, const int NORM) {
    return NORM ? u * ch->scale[half] + ch->shift[half] : u;
}

INLINE void outcome_kind(
    const Stage *st, const Buffers *b, int image, vu *restrict out, ptrdiff_t out_row, const int POOL, const int NORM
) {
    int words = WORDS(st->co);
    const vu *restrict z = b->z + (size_t)image * st->ho * st->wo * words;
    for (int y = 0; y < st->hq; y++)
        for (int c = 0; c < words; c++) {
            const Channels ch = channels_of(st, b, image, c);
            for (int x = 0; x < st->wq; x++) {
                const vu *from = z + ((ptrdiff_t)(y << POOL) * st->wo + (x << POOL)) * words + c;
                vf result[2];
                for (int half = 0; half < PACK; half++) {
                    vf best = {};
                    for (int p = 0; p < (POOL ? 4 : 1); p++) {
                        vf z_at = get(from[((p >> 1) * st->wo + (p & 1)) * words], half);
                        vf v = v_of(&ch, half, u_of(&ch, half, z_at, NORM), NORM);
                        best = p ? pick((v > best) | (v != v), v, best) : v;
                    }
                    result[half] = NORM == 2 ? best : act(best, ch.slope) * ch.mask[half];
                }
                out[y * out_row + x * words + c] = put(result);
            }
        }
}

/* Of one channel: the window's values u, which of them is the greatest, of equals the first, and its v's gradient from
 * that of what came out; the others have none. */
INLINE vf window(
    const Channels *ch, int half, const vu *from, ptrdiff_t pixel, ptrdiff_t row, vf gradient, const int POOL,
    const int NORM, vf *u, vi *greatest
) {
    vf best = {};
    vi at = {};
    for (int p = 0; p < (POOL ? 4 : 1); p++) {
        u[p] = u_of(ch, half, get(from[(p >> 1) * row + (p & 1) * pixel], half), NORM);
        vf v = v_of(ch, half, u[p], NORM);
        vi more = v > best;
        best = p ? pick(more, v, best) : v;
        at = p ? (more & p) | (~more & at) : at;
    }
    *greatest = at;
    return NORM == 2 ? gradient : gradient * (ch->mask[half] * act_gradient(best, ch->slope));
}

INLINE vf only_at(int p, vi greatest, vf gradient) { return (vf)((vu)(greatest == p) & (vu)gradient); }
INLINE vu at_both(int p, const vi *greatest) { /* the bits of both channels of a word */
    if (PACK == 1) return (vu)(greatest[0] == p);
    return ((vu)(greatest[0] == p) & 0xffffu) | ((vu)(greatest[1] == p) & 0xffff0000u);
}

/* Add up dv, and dv * (u - mean), over an image. */
INLINE void norm_sums_kind(
    const Stage *st, const Buffers *b, int image, const vu *restrict gradient, const int POOL, const int NORM
) {
    int words = WORDS(st->co);
    ptrdiff_t z_row = (ptrdiff_t)st->wo * words;
    const vu *restrict z = b->z + (size_t)image * st->ho * z_row;
    for (int y = 0; y < st->hq; y++)
        for (int c = 0; c < words; c++) {
            const Channels ch = channels_of(st, b, image, c);
            const vu *from = z + (y << POOL) * z_row + c, *g = gradient + (ptrdiff_t)y * st->wq * words + c;
            vf s1[2] = {}, s2[2] = {};
            for (int x = 0; x < st->wq; x++, from += words << POOL, g += words)
                for (int half = 0; half < PACK; half++) {
                    vf u[4];
                    vi greatest;
                    vf into = window(&ch, half, from, words, z_row, get(*g, half), POOL, NORM, u, &greatest);
                    for (int p = 0; p < (POOL ? 4 : 1); p++) {
                        vf dv = only_at(p, greatest, into);
                        s1[half] += dv;
                        s2[half] += dv * (u[p] - ch.mean[half]);
                    }
                }
            for (int half = 0, o = c * PACK; half < PACK; half++, o++) b->s1[o] += s1[half], b->s2[o] += s2[half];
        }
}

/* From a gradient of v to that of z, once s1 is the mean of dv, and s2 that of dv * (u - mean) over the variance. */
INLINE vf through_norm(const Channels *ch, int half, vf z, vf u, vf d, const int NORM) {
    if (NORM) d = ch->scale[half] * (d - ch->s1[half] - (u - ch->mean[half]) * ch->s2[half]);
    return NORM == 2 ? d * ch->mask[half] * act_gradient(z, ch->slope) : d;
}

/* Channels are the inmost, as in memory: z and dz are too large to come from a near cache twice. */
INLINE void dz_kind(
    const Stage *st, const Buffers *b, int image, const vu *restrict gradient, vu *restrict dz, ptrdiff_t dz_row,
    const int POOL, const int NORM
) {
    int words = WORDS(st->co);
    ptrdiff_t z_row = (ptrdiff_t)st->wo * words;
    const vu *restrict z = b->z + (size_t)image * st->ho * z_row;
    for (int y = 0; y < st->ho; y++) {
        int pooled = y >> POOL < st->hq ? st->wq : 0;
        const vu *from = z + y * z_row, *g = gradient + (ptrdiff_t)(y >> POOL) * st->wq * words;
        vu *to = dz + y * dz_row;
        for (int x = 0; x < (POOL && y & 1 ? 0 : pooled); x++, g += words)
            for (int c = 0; c < words; c++) {
                const Channels ch = channels_of(st, b, image, c);
                ptrdiff_t at = (ptrdiff_t)(x << POOL) * words + c;
                vf dv[2], d[4][2], u[2][4], *row = b->row + c * PACK;
                vi greatest[2] = {};
                for (int half = 0; half < PACK; half++)
                    dv[half] = window(
                        &ch, half, from + at, words, z_row, get(g[c], half), POOL, NORM, u[half], greatest + half
                    );
                vu word = put(dv);
                for (int p = 0; p < (POOL ? 4 : 1); p++) {
                    ptrdiff_t z_at = at + (p >> 1) * z_row + (p & 1) * words;
                    __builtin_prefetch(from + z_at + 8 * words); /* of z, which was last seen in the forward pass */
                    for (int half = 0; half < PACK && NORM; half++) {
                        vf dv_at = only_at(p, greatest[half], dv[half]);
                        d[p][half] = through_norm(&ch, half, get(from[z_at], half), u[half][p], dv_at, NORM);
                    }
                    /* Without norm it is the rounded gradient, or none. */
                    to[at + (p >> 1) * dz_row + (p & 1) * words] = NORM ? put(d[p]) : word & at_both(p, greatest);
                }
                for (int half = 0; half < PACK; half++) {
                    if (!NORM) row[half] += dv[half];
                    for (int p = 0; p < (POOL ? 4 : 1) && NORM; p++) row[half] += d[p][half];
                }
            }
        /* What pooling leaves out at the lower and right edge has no gradient but batch norm's. */
        for (int x = pooled << POOL; x < st->wo; x++)
            for (int c = 0; c < words; c++) {
                const Channels ch = channels_of(st, b, image, c);
                ptrdiff_t at = (ptrdiff_t)x * words + c;
                vf d[2], *row = b->row + c * PACK;
                for (int half = 0; half < PACK; half++) {
                    vf z_at = get(from[at], half);
                    d[half] = through_norm(&ch, half, z_at, u_of(&ch, half, z_at, NORM), (vf){}, NORM);
                    row[half] += d[half];
                }
                to[at] = put(d);
            }
        for (int o = 0; o < EVEN(st->co); o++) b->db[o] += b->row[o], b->row[o] = (vf){};
    }
}

#define BY_KIND(function, st, ...) \
    switch ((st)->pool * 3 + ((st)->norm ? 1 + (st)->after : 0)) { \
        case 0: function(st, __VA_ARGS__, 0, 0); break; \
        case 1: function(st, __VA_ARGS__, 0, 1); break; \
        case 2: function(st, __VA_ARGS__, 0, 2); break; \
        case 3: function(st, __VA_ARGS__, 1, 0); break; \
        case 4: function(st, __VA_ARGS__, 1, 1); break; \
        default: function(st, __VA_ARGS__, 1, 2); \
    }
static void outcome(const Stage *st, const Buffers *b, int image, vu *out, ptrdiff_t row) {
    BY_KIND(outcome_kind, st, b, image, out, row)
}
static void norm_sums(const Stage *st, const Buffers *b, int image, const vu *gradient) {
    BY_KIND(norm_sums_kind, st, b, image, gradient)
}
static void dz_of(const Stage *st, const Buffers *b, int image, const vu *gradient, vu *dz, ptrdiff_t row) {
    BY_KIND(dz_kind, st, b, image, gradient, dz, row)
}

/* Batch norm's scale and shift, in training from the sums over u less its first value, which lies in `mean`. */
static void finish_norm(const Stage *st, const Buffers *b, const Call *call, int s) {
    float count = (float)call->count * st->ho * st->wo;
    for (int o = 0; o < st->co; o++) {
        vf mean = {}, variance = {};
        if (call->training) {
            vf less = b->s1[o] / count;
            mean = b->mean[o] + less;
            variance = b->s2[o] / count - less * less;
            variance = pick(variance < 0, (vf){}, variance);
        }
        for (int l = 0; l < call->members; l++) {
            float *running_mean = call->running_mean[s] + l * st->co + o;
            float *running_var = call->running_var[s] + l * st->co + o;
            if (call->training) {
                *running_mean += st->momentum * (mean[l] - *running_mean);
                *running_var += st->momentum * (variance[l] * (count / (count - 1)) - *running_var);
            } else mean[l] = *running_mean, variance[l] = *running_var;
        }
        for (int l = 0; l < LANES; l++) b->inverse[o][l] = 1.0f / sqrtf(variance[l] + st->eps);
        b->mean[o] = mean;
        b->scale[o] = b->gamma[o] * b->inverse[o];
        b->shift[o] = b->beta[o] - mean * b->scale[o];
    }
}

/* ---- The weights' gradient ---- */

/* From words of PACK channels to words of PACK images, a tile of channels after the other. */
static void pair_images(const vu *one, const vu *other, ptrdiff_t row, int h, int w, int channels, vu *to) {
    int words = WORDS(channels);
    for (int c0 = 0, tile; c0 < EVEN(channels); c0 += tile) {
        tile = tile_of(EVEN(channels) - c0);
        for (int y = 0; y < h; y++)
            for (int x = 0; x < w; x++) {
                const vu *a = one + y * row + (size_t)x * words + c0 / PACK;
                const vu *b = other + y * row + (size_t)x * words + c0 / PACK;
                for (int c = 0; c < tile / PACK; c++) {
                    if (PACK == 1) *to++ = a[c];
                    else *to++ = (a[c] & 0xffffu) | (b[c] << 16), *to++ = (a[c] >> 16) | (b[c] & 0xffff0000u);
                }
            }
    }
}

/* OUT by IN channels of a tile that has OF_OUT by OF_IN. */
INLINE void wgrad_part(
    const vu *dz, const char *x, ptrdiff_t x_row, int rows, int w, vf *sums, const int OUT, const int IN,
    const int OF_OUT, const int OF_IN, const int SHARED
) {
    vf acc[6][6];
    for (int o = 0; o < OUT; o++)
        for (int i = 0; i < IN; i++) acc[o][i] = sums[o * OF_IN + i];
    const ptrdiff_t step = OF_IN * (SHARED ? 4 : sizeof(vu)), skip = x_row - w * step;
    for (int n = rows * w, left = w; n; n--, dz += OF_OUT) { /* one long loop, not one for each row */
        vu from[6];
        for (int i = 0; i < IN; i++) from[i] = SHARED ? (vu){} + ((const uint32_t *)x)[i] : ((const vu *)x)[i];
        for (int o = 0; o < OUT; o++)
            for (int i = 0; i < IN; i++) acc[o][i] = dot(acc[o][i], dz[o], from[i]);
        ptrdiff_t more = --left ? 0 : skip;
        left = left ? left : w;
        x += step + more;
    }
    for (int o = 0; o < OUT; o++)
        for (int i = 0; i < IN; i++) sums[o * OF_IN + i] = acc[o][i];
}

INLINE void wgrad_block(
    const vu *dz, const char *x, ptrdiff_t x_row, int rows, int w, vf *sums, const int OUT, const int IN,
    const int SHARED
) {
    const int OUT_AT_ONCE = REGISTERS < 32 && OUT == 6 ? 3 : OUT;
    const int IN_AT_ONCE = REGISTERS == 32 ? IN : IN % 3 == 0 ? 3 : OUT_AT_ONCE == 4 && IN == 4 ? 2 : IN;
    for (int o = 0; o < OUT; o += OUT_AT_ONCE)
        for (int i = 0; i < IN; i += IN_AT_ONCE)
            wgrad_part(
                dz + o, x + i * (SHARED ? 4 : sizeof(vu)), x_row, rows, w, sums + o * IN + i, OUT_AT_ONCE, IN_AT_ONCE,
                OUT, IN, SHARED
            );
}

/* Add to dw what PACK images give, in blocks of rows that stay in the first cache. */
static void wgrad(const Stage *st, const Buffers *b, int first, const vu *dz_pairs, const char *x_pairs) {
    int h = st->hi + 2 * st->pad, w = st->wi + 2 * st->pad, k = st->k, ci = first ? st->ci : EVEN(st->ci);
    size_t word = first ? 4 : sizeof(vu);
    vf *sums = b->dw;
    for (int o0 = 0, to; o0 < EVEN(st->co); o0 += to) {
        to = tile_of(EVEN(st->co) - o0);
        for (int i0 = 0, ti; i0 < ci; i0 += ti, sums += (size_t)k * k * to * (first ? ci : ti)) {
            ti = first ? ci : tile_of(ci - i0);
            int block = (int)(20000 / (st->wo * to * sizeof(vu) + w * ti * word));
            if (block < 1) block = 1;
            for (int y = 0; y < st->ho; y += block)
                for (int at = 0; at < k * k; at++) {
                    const char *x = x_pairs + ((size_t)h * w * i0 + ((size_t)(y + at / k) * w + at % k) * ti) * word;
                    const vu *dz = dz_pairs + (size_t)st->wo * ((size_t)st->ho * o0 + (size_t)y * to);
                    int rows = st->ho - y < block ? st->ho - y : block;
                    vf *into = sums + (size_t)at * to * ti;
#define BLOCK(OUT, IN, SHARED) wgrad_block(dz, x, w * ti * word, rows, st->wo, into, OUT, IN, SHARED)
                    switch (first ? to : to * 10 + ti) {
                        case 6: BLOCK(6, 3, 1); break;
                        case 4: BLOCK(4, 3, 1); break;
                        case 2: BLOCK(2, 3, 1); break;
                        case 66: BLOCK(6, 6, 0); break;
                        case 64: BLOCK(6, 4, 0); break;
                        case 62: BLOCK(6, 2, 0); break;
                        case 46: BLOCK(4, 6, 0); break;
                        case 44: BLOCK(4, 4, 0); break;
                        case 42: BLOCK(4, 2, 0); break;
                        case 26: BLOCK(2, 6, 0); break;
                        case 24: BLOCK(2, 4, 0); break;
                        default: BLOCK(2, 2, 0);
                    }
#undef BLOCK
                }
        }
    }
}

/* ---- Whole passes ---- */

/* Between words and numbers [member][image][channel, y, x]. */
INLINE void move_between(
    const Stage *st, const Call *call, int image, vu *words, const int MEMBERS, const int INTO_WORDS
) {
    int pixels = st->hq * st->wq, each = WORDS(st->co);
    size_t size = (size_t)pixels * st->co, member = (size_t)call->count * size * NUMBER;
    char *features = (char *)call->features + image * size * NUMBER;
    for (int o = 0; o < st->co; o += PACK)
        for (int p = 0; p < pixels; p++) {
            char *word = (char *)(words + (size_t)p * each + o / PACK);
            char *number = features + ((size_t)o * pixels + p) * NUMBER;
            for (int l = 0; l < MEMBERS; l++, word += 4, number += member)
                for (int half = 0; half < PACK && o + half < st->co; half++) {
                    char *single = number + (size_t)half * pixels * NUMBER;
                    if (INTO_WORDS) memcpy(word + half * NUMBER, single, NUMBER);
                    else memcpy(single, word + half * NUMBER, NUMBER);
                }
        }
}
INLINE void move_features(const Stage *st, const Call *call, int image, vu *words, const int INTO_WORDS) {
    /* The compiler is told of the usual number. */
    if (call->members == LANES) move_between(st, call, image, words, LANES, INTO_WORDS);
    else move_between(st, call, image, words, call->members, INTO_WORDS);
}

static void take_images(const Stage *st, const Buffers *b, const Call *call) {
    size_t row = (size_t)st->wi * st->ci * NUMBER, edge = (size_t)st->pad * st->ci * NUMBER;
    for (int n = 0; n < call->count; n++)
        for (int y = 0; y < st->hi; y++) {
            size_t at = (size_t)n * (st->hi + 2 * st->pad) + y + st->pad;
            const char *from = (const char *)call->images + ((size_t)n * st->hi + y) * row;
            memcpy(b->images + at * (row + 2 * edge) + edge, from, row);
        }
}

static void take_masks(const Stage *st, const Buffers *b, const Call *call, const float *masks) {
    for (int n = 0; n < call->count; n++)
        for (int o = 0; o < EVEN(st->co); o++) {
            vf *mask = b->mask + (size_t)n * EVEN(st->co) + o;
            *mask = (vf){} + 1.0f;
            for (int l = 0; l < call->members && masks && o < st->co; l++)
                (*mask)[l] = masks[((size_t)l * call->count + n) * st->co + o];
        }
}

/* What comes out of a stage, to the next one's x or to the features. */
static void pass_on(const Net *net, const Arena *arena, const Call *call, int s, int image) {
    const Stage *st = &net->stage[s], *next = s + 1 < net->stages ? st + 1 : 0;
    ptrdiff_t row = (ptrdiff_t)(next ? next->wi + 2 * next->pad : st->wq) * WORDS(st->co);
    vu *out = arena->gradient[0]; /* free until the backward pass */
    if (next) {
        size_t begin = (size_t)image * (next->hi + 2 * next->pad) + next->pad; /* of the rows of all images */
        out = arena->stage[s + 1].x + begin * row + next->pad * WORDS(st->co);
    }
    outcome(st, &arena->stage[s], image, out, row);
    if (!next) move_features(st, call, image, out, 0);
}

int64_t lanes_bytes(const Net *net) {
    Arena arena;
    return (int64_t)lay_out(net, 0, &arena);
}

void lanes_forward(const Net *net, const Call *call) {
    Arena arena;
    lay_out(net, call->arena, &arena);
    take_images(&net->stage[0], &arena.stage[0], call);
    for (int s = 0; s < net->stages; s++) {
        const Stage *st = &net->stage[s];
        const Buffers *b = &arena.stage[s];
        int h = st->hi + 2 * st->pad, w = st->wi + 2 * st->pad, words = WORDS(st->co);
        int sums = st->norm && call->training; /* of all images, before any of them can be passed on */
        ptrdiff_t pixel = s ? WORDS(st->ci) * (ptrdiff_t)sizeof(vu) : st->ci * NUMBER;
        pack_weights(st, b, !s, call);
        take_masks(st, b, call, st->mask ? call->masks[s] : 0);
        if (st->norm && !sums) finish_norm(st, b, call, s);
        memset(b->s1, 0, EVEN(st->co) * sizeof(vf));
        memset(b->s2, 0, EVEN(st->co) * sizeof(vf));
        for (int n = 0; n < call->count; n++) {
            Conv c = {
                .x = (s ? (const char *)b->x : b->images) + (size_t)n * h * w * pixel, .pixel = pixel, .row = w * pixel,
                .k = st->k, .words = s ? st->k * WORDS(st->ci) : SHARED_WORDS(st->k * st->ci), .h = st->ho, .w = st->wo,
                .co = st->co, .weights = b->wf, .bias = b->bias, .out = b->z + (size_t)n * st->ho * st->wo * words,
                .sum = sums ? b->s1 : 0, .square = b->s2, .first = b->mean, .begin = !n,
                .mask = b->mask + (size_t)n * EVEN(st->co), .after = st->after, .slope = st->slope,
            };
            conv(&c, !s);
            if (!sums) pass_on(net, &arena, call, s, n); /* while z is in the cache */
        }
        if (sums) finish_norm(st, b, call, s);
        for (int n = 0; n < call->count && sums; n++) pass_on(net, &arena, call, s, n);
    }
}

void lanes_backward(const Net *net, const Call *call) {
    Arena arena;
    lay_out(net, call->arena, &arena);
    const Stage *last = &net->stage[net->stages - 1];
    for (int n = 0; n < call->count; n++)
        move_features(last, call, n, arena.gradient[0] + (size_t)n * last->hq * last->wq * WORDS(last->co), 1);
    for (int s = net->stages - 1, turn = 0; s >= 0; s--, turn ^= 1) {
        const Stage *st = &net->stage[s];
        const Buffers *b = &arena.stage[s];
        int h = st->hi + 2 * st->pad, w = st->wi + 2 * st->pad, in = WORDS(st->ci), words = WORDS(st->co);
        int q = st->k - 1 - st->pad;
        size_t outcome_words = (size_t)st->hq * st->wq * words;
        const vu *gradient = arena.gradient[turn];
        float count = (float)call->count * st->ho * st->wo;
        memset(b->db, 0, EVEN(st->co) * sizeof(vf));
        memset(b->dw, 0, (size_t)EVEN(st->co) * EVEN(st->ci) * st->k * st->k * sizeof(vf));
        if (st->norm) {
            memset(b->s1, 0, EVEN(st->co) * sizeof(vf));
            memset(b->s2, 0, EVEN(st->co) * sizeof(vf));
            for (int n = 0; n < call->count; n++) norm_sums(st, b, n, gradient + n * outcome_words);
            for (int o = 0; o < st->co; o++) b->s1[o] /= count, b->s2[o] *= b->inverse[o] * b->inverse[o] / count;
        }
        ptrdiff_t row = (ptrdiff_t)(st->wo + 2 * q) * words;
        size_t padded = (size_t)(st->ho + 2 * q) * row;
        vu *dz = b->dz + q * row + q * words;
        for (int n = 0; n < call->count; n += PACK) {
            int images = n + PACK <= call->count ? PACK : 1;
            for (int i = 0; i < images; i++)
                dz_of(st, b, n + i, gradient + (n + i) * outcome_words, dz + i * padded, row);
            for (int y = 0; y < st->ho && images < PACK; y++)
                memset(dz + padded + y * row, 0, st->wo * words * sizeof(vu));
            pair_images(dz, dz + (PACK - 1) * padded, row, st->ho, st->wo, st->co, arena.dz_pairs);
            if (s) {
                const vu *x = b->x + (size_t)n * h * w * in;
                pair_images(x, x + (size_t)(images - 1) * h * w * in, (ptrdiff_t)w * in, h, w, st->ci, arena.x_pairs);
            } else {
                size_t size = (size_t)h * w * st->ci;
                const char *one = b->images + n * size * NUMBER, *other = one + (images - 1) * size * NUMBER;
                for (size_t at = 0; at < size; at++)
                    for (int half = 0; half < PACK; half++) {
                        char *to = (char *)arena.x_pairs + at * 4 + half * NUMBER;
                        memcpy(to, (half ? other : one) + at * NUMBER, NUMBER);
                    }
            }
            wgrad(st, b, !s, arena.dz_pairs, (const char *)arena.x_pairs);
            for (int i = 0; i < images && s; i++) {
                Conv c = {
                    .x = (const char *)(b->dz + i * padded), .pixel = words * sizeof(vu), .row = row * sizeof(vu),
                    .k = st->k, .words = st->k * words, .h = st->hi, .w = st->wi, .co = st->ci, .weights = b->wb,
                    .out = arena.gradient[turn ^ 1] + (size_t)(n + i) * st->hi * st->wi * in,
                };
                conv(&c, 0);
            }
        }
        if (st->norm) /* to the gradients of beta and gamma: sums of dv, and of dv * (u - mean) over the deviation */
            for (int o = 0; o < st->co; o++) b->s1[o] *= count, b->s2[o] *= count / b->inverse[o];
        unpack_gradients(st, b, !s, call);
    }
}

/* The size of a structure, or the place of its field, in bytes; -1 if there is none of this name. Who loads this library
 * compares them with its own. */
int64_t lanes_place(const char *name) {
#define FIELD(type, field) {#type "." #field, offsetof(type, field)}
    static const struct { const char *name; int64_t place; } known[] = {
        {"Stage", sizeof(Stage)}, FIELD(Stage, ci), FIELD(Stage, co), FIELD(Stage, k), FIELD(Stage, pad),
        FIELD(Stage, hi), FIELD(Stage, wi), FIELD(Stage, ho), FIELD(Stage, wo), FIELD(Stage, hq), FIELD(Stage, wq),
        FIELD(Stage, pool), FIELD(Stage, norm), FIELD(Stage, after), FIELD(Stage, mask), FIELD(Stage, slope),
        FIELD(Stage, momentum), FIELD(Stage, eps), FIELD(Stage, weight), FIELD(Stage, bias), FIELD(Stage, gamma),
        FIELD(Stage, beta), {"Net", sizeof(Net)}, FIELD(Net, stages), FIELD(Net, batch), FIELD(Net, stage),
        {"Call", sizeof(Call)}, FIELD(Call, arena), FIELD(Call, images), FIELD(Call, features), FIELD(Call, rows),
        FIELD(Call, gradients), FIELD(Call, stride), FIELD(Call, members), FIELD(Call, count), FIELD(Call, training),
        FIELD(Call, running_mean), FIELD(Call, running_var), FIELD(Call, masks),
    };
#undef FIELD
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(name, known[i].name)) return known[i].place;
    return -1;
}
