/* The leaves of a trie with the greatest sums of table entries: the inner loop of voken.decoding.linear.

   Every leaf has a code per place. A query has two tables: of numbers, whose sum is a leaf's score, and of bytes, which
   say how many steps an entry is below the best one of its place, rounded down. So the sum of a leaf's bytes is a lower
   bound of how far it is below the best possible score. It is computed for all leaves; the score only for those whose
   bound does not exclude them from the `count` best of the leaves so far.

   voken works without this file: where it is not compiled, linear.py uses numpy. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 8192 /* leaves: their codes stay in the cache while all queries read them */
#define MOST_PLACES 257 /* so that a sum of bytes fits into 16 bits */

typedef struct {
    const uint8_t *bytes;  /* places × entries */
    const double *numbers; /* places × entries, without the bias */
    double top, step;      /* the best possible score, and what a step is */
    int32_t *leaves;       /* those that may be among the best */
    double *scores;        /* their scores */
    size_t length, space;
    double *heap; /* the best scores so far, at most `count`; the least is the first */
    size_t heap_length;
    double least;   /* scores below it are not among the best: the least of the heap, less a rounding to float32 */
    uint32_t limit; /* nor are leaves with a greater sum of bytes */
} Query;

typedef struct {
    const void *codes[MOST_PLACES]; /* those of all leaves, one array per place */
    int bytes[MOST_PLACES];         /* per code: 1 or 2 */
} Codes;

typedef struct {
    Query *queries;
    Py_ssize_t query_count;
    const Codes *codes;
    Py_ssize_t places, number_places, leaves, entries; /* `entries` is a power of two */
    const float *bias;                                 /* of each leaf, or NULL: its codes are the last place */
    double greatest_bias;                              /* to be added to each */
    size_t count;
    uint16_t *sums; /* of a block */
    int out_of_memory;
} Scan;

static inline Py_ssize_t code_of(const Scan *scan, Py_ssize_t place, Py_ssize_t leaf)
{
    const void *codes = scan->codes->codes[place];
    Py_ssize_t code = scan->codes->bytes[place] == 1 ? ((const uint8_t *)codes)[leaf] : ((const uint16_t *)codes)[leaf];
    return code & (scan->entries - 1); /* a code of a damaged file reads no memory of others */
}

static double score_of(const Scan *scan, const Query *query, Py_ssize_t leaf)
{
    double score = 0;
    for (Py_ssize_t place = 0; place < scan->number_places; place++)
        score += query->numbers[place * scan->entries + code_of(scan, place, leaf)];
    return scan->bias == NULL ? score : score + (scan->bias[leaf] + scan->greatest_bias);
}

/* Put `score` in the place of the least, or into a new place at the end. */
static void push(Scan *scan, Query *query, double score)
{
    double *heap = query->heap;
    size_t place;
    if (query->heap_length < scan->count) {
        for (place = query->heap_length++; place && heap[(place - 1) / 2] > score; place = (place - 1) / 2)
            heap[place] = heap[(place - 1) / 2];
    } else {
        size_t child;
        for (place = 0; (child = 2 * place + 1) < scan->count; place = child) {
            if (child + 1 < scan->count && heap[child + 1] < heap[child])
                child++;
            if (heap[child] >= score)
                break;
            heap[place] = heap[child];
        }
    }
    heap[place] = score;
    if (query->heap_length < scan->count)
        return;
    /* scores that are equal once they are rounded to float32 are equal */
    query->least = heap[0] - fabs(heap[0]) * FLT_EPSILON - FLT_MIN;
    double limit = (query->top - query->least) / query->step + 1; /* 1 for what rounding does to the sums */
    query->limit = limit < UINT16_MAX ? (uint32_t)limit : UINT16_MAX;
}

/* A leaf whose sum of bytes does not exclude it. */
static void keep(Scan *scan, Query *query, Py_ssize_t leaf)
{
    double score = score_of(scan, query, leaf);
    if (score < query->least)
        return;
    if (query->length == query->space) {
        size_t space = 2 * query->space;
        int32_t *leaves = realloc(query->leaves, space * sizeof *leaves);
        if (leaves != NULL)
            query->leaves = leaves;
        double *scores = realloc(query->scores, space * sizeof *scores);
        if (scores != NULL)
            query->scores = scores;
        if (leaves == NULL || scores == NULL) {
            scan->out_of_memory = 1;
            return;
        }
        query->space = space;
    }
    query->leaves[query->length] = (int32_t)leaf;
    query->scores[query->length++] = score;
    if (query->heap_length < scan->count || score > query->heap[0])
        push(scan, query, score);
}

static void scan_block(Scan *scan, Query *query, Py_ssize_t start, Py_ssize_t end)
{
    uint16_t *sums = scan->sums;
    Py_ssize_t length = end - start;
    memset(sums, 0, length * sizeof *sums);
    for (Py_ssize_t place = 0; place < scan->places; place++) {
        const uint8_t *table = query->bytes + place * scan->entries;
        const Py_ssize_t mask = scan->entries - 1;
        if (scan->codes->bytes[place] == 1) {
            const uint8_t *codes = (const uint8_t *)scan->codes->codes[place] + start;
            for (Py_ssize_t leaf = 0; leaf < length; leaf++)
                sums[leaf] += table[codes[leaf] & mask];
        } else {
            const uint16_t *codes = (const uint16_t *)scan->codes->codes[place] + start;
            for (Py_ssize_t leaf = 0; leaf < length; leaf++)
                sums[leaf] += table[codes[leaf] & mask];
        }
    }
    for (Py_ssize_t leaf = 0; leaf < length; leaf++)
        if (sums[leaf] <= query->limit)
            keep(scan, query, start + leaf);
}

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define HAS_X86 1
#define AT_ONCE 4 /* vectors that share the tables in registers, or in the first cache */
#define AVX2 __attribute__((target("avx2")))
#define VBMI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi")))

/* Both kernels below take codes that are bytes, tables of 256 entries, and end - start a multiple of their width times
   AT_ONCE. A 16-bit lane holds two leaves: `both` sums their bytes, the odd leaf's 256 times, and `odd` the odd ones. */

static void keep_lanes(Scan *scan, Query *query, Py_ssize_t first, uint32_t lanes, const uint16_t *even,
                       const uint16_t *odd)
{
    for (; lanes; lanes &= lanes - 1) {
        int lane = __builtin_ctz(lanes);
        if (even[lane] <= query->limit)
            keep(scan, query, first + 2 * lane);
        if (odd[lane] <= query->limit)
            keep(scan, query, first + 2 * lane + 1);
    }
}

/* The entries of 32 codes: 16 tables of 16 entries, between which the upper four bits of a code choose. */
AVX2 static inline __m256i look_up_avx2(const uint8_t *entries, __m256i codes)
{
    __m256i chosen[16], low = _mm256_and_si256(codes, _mm256_set1_epi8(15));
    for (int part = 0; part < 16; part++) {
        __m128i table = _mm_loadu_si128((const __m128i *)(entries + 16 * part));
        chosen[part] = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), low);
    }
    for (int parts = 8; parts; parts /= 2, codes = _mm256_add_epi8(codes, codes))
        for (int part = 0; part < parts; part++)
            chosen[part] = _mm256_blendv_epi8(chosen[part], chosen[part + parts], codes);
    return chosen[0];
}

AVX2 static void scan_block_avx2(Scan *scan, Query *query, Py_ssize_t start, Py_ssize_t end)
{
    for (Py_ssize_t first = start; first < end; first += 32 * AT_ONCE) {
        __m256i both[AT_ONCE], odd[AT_ONCE];
        for (int at = 0; at < AT_ONCE; at++)
            both[at] = odd[at] = _mm256_setzero_si256();
        for (Py_ssize_t place = 0; place < scan->places; place++) {
            const uint8_t *codes = (const uint8_t *)scan->codes->codes[place] + first;
            const uint8_t *entries = query->bytes + place * 256;
            for (int at = 0; at < AT_ONCE; at++) {
                __m256i part = look_up_avx2(entries, _mm256_loadu_si256((const __m256i *)(codes + 32 * at)));
                both[at] = _mm256_add_epi16(both[at], part);
                odd[at] = _mm256_add_epi16(odd[at], _mm256_srli_epi16(part, 8));
            }
        }
        for (int at = 0; at < AT_ONCE; at++) {
            __m256i even = _mm256_sub_epi16(both[at], _mm256_slli_epi16(odd[at], 8));
            __m256i limit = _mm256_set1_epi16((short)query->limit);
            /* a is at most b if the greater of both is b */
            __m256i evens = _mm256_cmpeq_epi16(_mm256_max_epu16(even, limit), limit);
            __m256i odds = _mm256_cmpeq_epi16(_mm256_max_epu16(odd[at], limit), limit);
            __m256i some = _mm256_packs_epi16(_mm256_or_si256(evens, odds), _mm256_setzero_si256());
            uint32_t bytes = (uint32_t)_mm256_movemask_epi8(some), lanes = (bytes & 0xff) | (bytes >> 8 & 0xff00);
            if (!lanes)
                continue;
            uint16_t even_sums[16], odd_sums[16];
            _mm256_storeu_si256((__m256i *)even_sums, even);
            _mm256_storeu_si256((__m256i *)odd_sums, odd[at]);
            keep_lanes(scan, query, first + 32 * at, lanes, even_sums, odd_sums);
        }
    }
}

typedef struct {
    __m512i part[4];
} Table;

VBMI static inline Table read_table(const uint8_t *entries)
{
    Table table;
    for (int part = 0; part < 4; part++)
        table.part[part] = _mm512_loadu_si512(entries + 64 * part);
    return table;
}

/* The entries of 64 codes. */
VBMI static inline __m512i look_up(const Table *table, __m512i codes)
{
    __m512i low = _mm512_permutex2var_epi8(table->part[0], codes, table->part[1]);
    __m512i high = _mm512_permutex2var_epi8(table->part[2], codes, table->part[3]);
    return _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(codes), high);
}

VBMI static void scan_block_vbmi(Scan *scan, Query *query, Py_ssize_t start, Py_ssize_t end)
{
    for (Py_ssize_t first = start; first < end; first += 64 * AT_ONCE) {
        __m512i both[AT_ONCE], odd[AT_ONCE];
        for (int at = 0; at < AT_ONCE; at++)
            both[at] = odd[at] = _mm512_setzero_si512();
        for (Py_ssize_t place = 0; place < scan->places; place++) {
            const uint8_t *codes = (const uint8_t *)scan->codes->codes[place] + first;
            Table table = read_table(query->bytes + place * 256);
            for (int at = 0; at < AT_ONCE; at++) {
                __m512i part = look_up(&table, _mm512_loadu_si512(codes + 64 * at));
                both[at] = _mm512_add_epi16(both[at], part);
                odd[at] = _mm512_add_epi16(odd[at], _mm512_srli_epi16(part, 8));
            }
        }
        for (int at = 0; at < AT_ONCE; at++) {
            __m512i even = _mm512_sub_epi16(both[at], _mm512_slli_epi16(odd[at], 8));
            __m512i limit = _mm512_set1_epi16((short)query->limit);
            uint32_t lanes = _mm512_cmple_epu16_mask(even, limit) | _mm512_cmple_epu16_mask(odd[at], limit);
            if (!lanes)
                continue;
            uint16_t even_sums[32], odd_sums[32];
            _mm512_storeu_si512(even_sums, even);
            _mm512_storeu_si512(odd_sums, odd[at]);
            keep_lanes(scan, query, first + 64 * at, lanes, even_sums, odd_sums);
        }
    }
}
#endif

/* The bytes in a vector of the widest kernel that this processor has; 1 if none. */
static int processor_width(void)
{
#ifdef HAS_X86
    if (__builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        return 64;
    if (__builtin_cpu_supports("avx2"))
        return 32;
#endif
    return 1;
}

static void run(Scan *scan, int width)
{
    for (Py_ssize_t start = 0; start < scan->leaves; start += BLOCK) {
        Py_ssize_t end = start + BLOCK < scan->leaves ? start + BLOCK : scan->leaves, middle = start;
        for (Py_ssize_t place = 0; place < scan->query_count && !scan->out_of_memory; place++) {
            Query *query = scan->queries + place;
#ifdef HAS_X86
            if (width > 1) {
                middle = end - (end - start) % (width * AT_ONCE);
                (width == 64 ? scan_block_vbmi : scan_block_avx2)(scan, query, start, middle);
            }
#endif
            if (middle < end)
                scan_block(scan, query, middle, end);
        }
    }
}

static int prepare(Scan *scan, const Py_buffer *bytes, const Py_buffer *numbers, const Py_buffer *scales)
{
    scan->sums = malloc(BLOCK * sizeof *scan->sums);
    scan->queries = calloc(scan->query_count ? scan->query_count : 1, sizeof *scan->queries);
    if (scan->sums == NULL || scan->queries == NULL)
        return 0;
    for (Py_ssize_t place = 0; place < scan->query_count; place++) {
        Query *query = scan->queries + place;
        query->bytes = (const uint8_t *)bytes->buf + place * scan->places * scan->entries;
        query->numbers = (const double *)numbers->buf + place * scan->number_places * scan->entries;
        query->top = ((const double *)scales->buf)[2 * place];
        query->step = ((const double *)scales->buf)[2 * place + 1];
        query->space = 4 * scan->count + 64;
        query->leaves = malloc(query->space * sizeof *query->leaves);
        query->scores = malloc(query->space * sizeof *query->scores);
        query->heap = malloc(scan->count * sizeof *query->heap);
        query->least = -INFINITY;
        query->limit = UINT16_MAX;
        if (query->leaves == NULL || query->scores == NULL || query->heap == NULL)
            return 0;
    }
    return 1;
}

static void release(Scan *scan)
{
    for (Py_ssize_t place = 0; scan->queries != NULL && place < scan->query_count; place++) {
        free(scan->queries[place].leaves);
        free(scan->queries[place].scores);
        free(scan->queries[place].heap);
    }
    free(scan->queries);
    free(scan->sums);
}

/* The best leaves, ascending, and their scores, as the bytes of arrays of int32 and float64. */
static PyObject *result_of(Query *query)
{
    size_t length = 0;
    for (size_t place = 0; place < query->length; place++)
        if (query->scores[place] >= query->least) {
            query->leaves[length] = query->leaves[place];
            query->scores[length++] = query->scores[place];
        }
    return Py_BuildValue("(y#y#)", (const char *)query->leaves, (Py_ssize_t)(length * sizeof *query->leaves),
                         (const char *)query->scores, (Py_ssize_t)(length * sizeof *query->scores));
}

static PyObject *run_and_free(Scan *scan, int prepared, int width)
{
    if (prepared) {
        Py_BEGIN_ALLOW_THREADS
        run(scan, width);
        Py_END_ALLOW_THREADS
    }
    PyObject *results = !prepared || scan->out_of_memory ? PyErr_NoMemory() : PyList_New(scan->query_count);
    for (Py_ssize_t place = 0; results != NULL && place < scan->query_count; place++) {
        PyObject *result = result_of(scan->queries + place);
        if (result == NULL || PyList_SetItem(results, place, result) < 0)
            Py_CLEAR(results);
    }
    release(scan);
    return results;
}

static int shaped(const Py_buffer *array, int itemsize, int dimensions, Py_ssize_t first, Py_ssize_t second,
                  Py_ssize_t third)
{
    const Py_ssize_t shape[3] = {first, second, third};
    if (array->itemsize != itemsize || array->ndim != dimensions)
        return 0;
    for (int place = 0; place < dimensions; place++)
        if (array->shape[place] != shape[place])
            return 0;
    return 1;
}

enum { BYTES, NUMBERS, SCALES, BIAS, CODES };

/* Check the arrays, and scan them. `arrays` holds the places' codes from CODES on. */
static PyObject *scan_arrays(const Py_buffer *arrays, Py_ssize_t places, int has_bias, double greatest_bias,
                             Py_ssize_t count, int width)
{
    const Py_buffer *bytes = arrays + BYTES;
    Py_ssize_t queries = bytes->ndim == 3 ? bytes->shape[0] : 0, entries = bytes->ndim == 3 ? bytes->shape[2] : 0;
    Py_ssize_t leaves = arrays[CODES].ndim == 1 ? arrays[CODES].shape[0] : 0;
    int valid = shaped(bytes, 1, 3, queries, places, entries) && entries > 0 && !(entries & (entries - 1)) &&
                shaped(arrays + NUMBERS, 8, 3, queries, places - has_bias, entries) &&
                shaped(arrays + SCALES, 8, 2, queries, 2, 0) && (!has_bias || shaped(arrays + BIAS, 4, 1, leaves, 0, 0)) &&
                leaves <= INT32_MAX && count > 0 && count <= INT32_MAX;
    Codes codes;
    for (Py_ssize_t place = 0; place < places; place++) {
        const Py_buffer *column = arrays + CODES + place;
        codes.codes[place] = column->buf;
        codes.bytes[place] = (int)column->itemsize;
        valid = valid && (shaped(column, 1, 1, leaves, 0, 0) || shaped(column, 2, 1, leaves, 0, 0));
        width = column->itemsize == 1 && entries == 256 ? width : 1;
    }
    if (!valid) {
        PyErr_SetString(PyExc_ValueError, "the arrays do not have the shapes and types that _scan.pyi says");
        return NULL;
    }
    Scan scan = {
        .query_count = queries,
        .codes = &codes,
        .places = places,
        .number_places = places - has_bias,
        .leaves = leaves,
        .entries = entries,
        .bias = has_bias ? arrays[BIAS].buf : NULL,
        .greatest_bias = greatest_bias,
        .count = (size_t)count,
    };
    return run_and_free(&scan, prepare(&scan, bytes, arrays + NUMBERS, arrays + SCALES), width);
}

static PyObject *best_leaves(PyObject *module, PyObject *arguments)
{
    PyObject *columns, *others[CODES], *results = NULL;
    Py_ssize_t count;
    double greatest_bias;
    int width = processor_width();
    if (!PyArg_ParseTuple(arguments, "O!OOOOdn|i", &PyTuple_Type, &columns, &others[BYTES], &others[NUMBERS],
                          &others[SCALES], &others[BIAS], &greatest_bias, &count, &width))
        return NULL;
    if (width > processor_width() || (width != 1 && width != 32 && width != 64))
        return PyErr_Format(PyExc_ValueError, "this processor has no kernel for vectors of %d bytes", width);
    Py_ssize_t places = PyTuple_Size(columns);
    if (places < 1 || places > MOST_PLACES)
        return PyErr_Format(PyExc_ValueError, "codes for %zd places; 1 to %d are possible", places, MOST_PLACES);
    Py_buffer arrays[CODES + MOST_PLACES] = {{0}};
    int read = 1, has_bias = others[BIAS] != Py_None;
    for (Py_ssize_t place = 0; read && place < CODES + places; place++)
        if (place != BIAS || has_bias) {
            PyObject *array = place < CODES ? others[place] : PyTuple_GetItem(columns, place - CODES);
            read = PyObject_GetBuffer(array, arrays + place, PyBUF_C_CONTIGUOUS) == 0;
        }
    if (read)
        results = scan_arrays(arrays, places, has_bias, greatest_bias, count, width);
    for (Py_ssize_t place = 0; place < CODES + places; place++)
        PyBuffer_Release(arrays + place); /* does nothing for one that was not read */
    return results;
}

static PyObject *processor_width_of(PyObject *module, PyObject *nothing)
{
    return PyLong_FromLong(processor_width());
}

static PyMethodDef methods[] = {
    {"best_leaves", best_leaves, METH_VARARGS, "see _scan.pyi"},
    {"processor_width", processor_width_of, METH_NOARGS, "see _scan.pyi"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_scan", .m_methods = methods, .m_slots = slots};

PyMODINIT_FUNC PyInit__scan(void)
{
    return PyModuleDef_Init(&definition);
}
