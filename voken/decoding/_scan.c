/* The leaves of a trie whose sums of table entries may be among the best: the inner loop of voken.decoding.linear.

   Every leaf has a code per place, and every query a table of small numbers per place: what the leaf falls short of the
   best entry there, rounded down. The sum of a leaf is a lower bound of its distance from the best possible score. A
   scan keeps the leaves whose sum is at most `slack` above the count-th smallest sum so far, which never grows.

   voken works without this file: where it is not compiled, linear.py computes the sums with numpy. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 8192 /* leaves: their codes stay in the cache while all queries read them */
#define MOST_ENTRY 127 /* two entries are added in a byte */
#define MOST_PLACES 512 /* so that a sum fits into 16 bits */

typedef struct {
    const uint8_t *tables; /* places × entries */
    int32_t *leaves;       /* those that may be among the best */
    uint16_t *sums;        /* their sums */
    size_t length, space;
    size_t *histogram; /* how many leaves have each sum, of those that were kept */
    size_t least;      /* kept leaves whose sum is at most `worst` */
    uint32_t worst;    /* the count-th smallest sum so far */
    uint32_t limit;    /* leaves with a greater sum are dropped */
} Query;

typedef struct {
    const void *codes[MOST_PLACES]; /* those of all leaves, one array per place */
    int bytes[MOST_PLACES];         /* per code: 1 or 2 */
} Codes;

typedef struct {
    Query *queries;
    Py_ssize_t query_count;
    const Codes *codes;
    Py_ssize_t places, leaves, entries; /* `entries` is a power of two */
    size_t count;
    uint32_t slack, most_sum;
    uint16_t *sums; /* of a block */
    int out_of_memory;
} Scan;

static void keep(Scan *scan, Query *query, Py_ssize_t leaf, uint32_t sum)
{
    if (query->length == query->space) {
        size_t space = 2 * query->space;
        int32_t *leaves = realloc(query->leaves, space * sizeof *leaves);
        if (leaves != NULL)
            query->leaves = leaves;
        uint16_t *sums = realloc(query->sums, space * sizeof *sums);
        if (sums != NULL)
            query->sums = sums;
        if (leaves == NULL || sums == NULL) {
            scan->out_of_memory = 1;
            return;
        }
        query->space = space;
    }
    query->leaves[query->length] = (int32_t)leaf;
    query->sums[query->length++] = (uint16_t)sum;
    query->histogram[sum]++;
    if (sum > query->worst)
        return;
    query->least++;
    while (query->least - query->histogram[query->worst] >= scan->count)
        query->least -= query->histogram[query->worst--];
    if (query->least >= scan->count && query->worst + scan->slack < query->limit)
        query->limit = query->worst + scan->slack;
}

static void scan_block(Scan *scan, Query *query, Py_ssize_t start, Py_ssize_t end)
{
    uint16_t *sums = scan->sums;
    Py_ssize_t length = end - start;
    memset(sums, 0, length * sizeof *sums);
    for (Py_ssize_t place = 0; place < scan->places; place++) {
        const uint8_t *table = query->tables + place * scan->entries;
        const Py_ssize_t mask = scan->entries - 1; /* a code of a damaged file reads no memory of others */
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
            keep(scan, query, start + leaf, sums[leaf]);
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
            keep(scan, query, first + 2 * lane, even[lane]);
        if (odd[lane] <= query->limit)
            keep(scan, query, first + 2 * lane + 1, odd[lane]);
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
            const uint8_t *entries = query->tables + place * 256;
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
        for (Py_ssize_t place = 0; place < scan->places; place += 2) {
            const uint8_t *codes = (const uint8_t *)scan->codes->codes[place] + first;
            const uint8_t *entries = query->tables + place * 256;
            Table table = read_table(entries);
            __m512i pair[AT_ONCE];
            for (int at = 0; at < AT_ONCE; at++)
                pair[at] = look_up(&table, _mm512_loadu_si512(codes + 64 * at));
            if (place + 1 < scan->places) {
                codes = (const uint8_t *)scan->codes->codes[place + 1] + first;
                table = read_table(entries + 256);
                for (int at = 0; at < AT_ONCE; at++)
                    pair[at] = _mm512_add_epi8(pair[at], look_up(&table, _mm512_loadu_si512(codes + 64 * at)));
            }
            for (int at = 0; at < AT_ONCE; at++) {
                both[at] = _mm512_add_epi16(both[at], pair[at]);
                odd[at] = _mm512_add_epi16(odd[at], _mm512_srli_epi16(pair[at], 8));
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

static int prepare(Scan *scan, const uint8_t *tables)
{
    scan->sums = malloc(BLOCK * sizeof *scan->sums);
    scan->queries = calloc(scan->query_count ? scan->query_count : 1, sizeof *scan->queries);
    if (scan->sums == NULL || scan->queries == NULL)
        return 0;
    for (Py_ssize_t place = 0; place < scan->query_count; place++) {
        Query *query = scan->queries + place;
        query->tables = tables + place * scan->places * scan->entries;
        query->space = 4 * scan->count + 64;
        query->leaves = malloc(query->space * sizeof *query->leaves);
        query->sums = malloc(query->space * sizeof *query->sums);
        query->histogram = calloc(scan->most_sum + 1, sizeof *query->histogram);
        query->worst = query->limit = scan->most_sum;
        if (query->leaves == NULL || query->sums == NULL || query->histogram == NULL)
            return 0;
    }
    return 1;
}

static void release(Scan *scan)
{
    for (Py_ssize_t place = 0; scan->queries != NULL && place < scan->query_count; place++) {
        free(scan->queries[place].leaves);
        free(scan->queries[place].sums);
        free(scan->queries[place].histogram);
    }
    free(scan->queries);
    free(scan->sums);
}

/* The kept leaves of a query, ascending, as the bytes of an array of int32. */
static PyObject *result_of(Query *query)
{
    size_t length = 0;
    for (size_t place = 0; place < query->length; place++)
        if (query->sums[place] <= query->limit)
            query->leaves[length++] = query->leaves[place];
    return PyBytes_FromStringAndSize((const char *)query->leaves, length * sizeof *query->leaves);
}

static int check_tables(const Py_buffer *tables, Py_ssize_t places, Py_ssize_t count, Py_ssize_t slack)
{
    if (tables->ndim != 3 || tables->itemsize != 1 || tables->shape[1] != places || places < 1 ||
        places > MOST_PLACES || tables->shape[2] < 1 || (tables->shape[2] & (tables->shape[2] - 1)) || count < 1 ||
        slack < 0 || slack > UINT16_MAX) {
        PyErr_SetString(PyExc_ValueError, "tables are bytes (queries, places, entries); entries is a power of two");
        return 0;
    }
    const uint8_t *entries = tables->buf;
    for (Py_ssize_t place = 0; place < tables->len; place++)
        if (entries[place] > MOST_ENTRY) {
            PyErr_SetString(PyExc_ValueError, "an entry of a table is greater than 127");
            return 0;
        }
    return 1;
}

static PyObject *scan_tables(const Codes *codes, Py_ssize_t leaves, const Py_buffer *tables, Py_ssize_t count,
                             Py_ssize_t slack, int width)
{
    Scan scan = {
        .query_count = tables->shape[0],
        .codes = codes,
        .places = tables->shape[1],
        .leaves = leaves,
        .entries = tables->shape[2],
        .count = (size_t)count,
        .slack = (uint32_t)slack,
        .most_sum = (uint32_t)(tables->shape[1] * MOST_ENTRY),
    };
    for (Py_ssize_t place = 0; place < scan.places; place++)
        width = codes->bytes[place] == 1 && scan.entries == 256 ? width : 1;
    if (prepare(&scan, tables->buf)) {
        Py_BEGIN_ALLOW_THREADS
        run(&scan, width);
        Py_END_ALLOW_THREADS
    } else {
        scan.out_of_memory = 1;
    }
    PyObject *results = scan.out_of_memory ? PyErr_NoMemory() : PyList_New(scan.query_count);
    for (Py_ssize_t place = 0; results != NULL && place < scan.query_count; place++) {
        PyObject *kept = result_of(scan.queries + place);
        if (kept == NULL || PyList_SetItem(results, place, kept) < 0)
            Py_CLEAR(results);
    }
    release(&scan);
    return results;
}

static PyObject *candidates(PyObject *module, PyObject *arguments)
{
    PyObject *columns, *table_array, *results = NULL;
    Py_ssize_t count, slack;
    int width = processor_width();
    if (!PyArg_ParseTuple(arguments, "O!Onn|i", &PyTuple_Type, &columns, &table_array, &count, &slack, &width))
        return NULL;
    if (width > processor_width() || (width != 1 && width != 32 && width != 64)) {
        PyErr_Format(PyExc_ValueError, "this processor has no kernel for vectors of %d bytes", width);
        return NULL;
    }
    Py_buffer tables, buffers[MOST_PLACES];
    if (PyObject_GetBuffer(table_array, &tables, PyBUF_C_CONTIGUOUS) < 0)
        return NULL;
    Codes codes;
    Py_ssize_t places = PyTuple_Size(columns), place = 0;
    if (check_tables(&tables, places, count, slack)) {
        for (; place < places; place++) {
            Py_buffer *buffer = buffers + place;
            if (PyObject_GetBuffer(PyTuple_GetItem(columns, place), buffer, PyBUF_C_CONTIGUOUS) < 0)
                break;
            codes.codes[place] = buffer->buf;
            codes.bytes[place] = (int)buffer->itemsize;
            if (buffer->ndim != 1 || buffer->shape[0] != buffers[0].shape[0] || buffer->shape[0] > INT32_MAX ||
                (buffer->itemsize != 1 && buffer->itemsize != 2)) {
                PyErr_SetString(PyExc_ValueError, "codes are arrays of 8 or 16 bits, one per place, of one length");
                place++;
                break;
            }
        }
        if (!PyErr_Occurred())
            results = scan_tables(&codes, buffers[0].shape[0], &tables, count, slack, width);
        while (place)
            PyBuffer_Release(buffers + --place);
    }
    PyBuffer_Release(&tables);
    return results;
}

static PyObject *processor_width_of(PyObject *module, PyObject *nothing)
{
    return PyLong_FromLong(processor_width());
}

static PyMethodDef methods[] = {
    {"candidates", candidates, METH_VARARGS,
     "candidates(codes, tables, count, slack, width) -> list of bytes; see _scan.pyi"},
    {"processor_width", processor_width_of, METH_NOARGS, "processor_width() -> int; see _scan.pyi"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_scan", .m_methods = methods, .m_slots = slots};

PyMODINIT_FUNC PyInit__scan(void)
{
    return PyModuleDef_Init(&definition);
}
