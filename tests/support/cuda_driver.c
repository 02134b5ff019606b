/* A stand-in for NVIDIA's driver: what numba calls of it, on the host's memory, with two devices.
 *
 * Calls that need a context fail without one, memory is limited and holds rubbish at first, and a launch is handed to
 * `launcher`. Names and numbers are those of the CUDA driver API's documentation. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS, OUT_OF_MEMORY = 2, INVALID_CONTEXT = 201, DEVICES = 2, MAJOR = 75, MINOR = 76 };
#define NEEDS_CONTEXT if (!depth) return INVALID_CONTEXT

typedef unsigned long long pointer;
typedef void (*launch_function)(const char *name, unsigned threads, void **arguments, int device);
struct image { void *data; size_t size; };

static int contexts[DEVICES] = {0, 1};
static __thread int *stack[16];
static __thread int depth;
static pthread_mutex_t memory = PTHREAD_MUTEX_INITIALIZER;
static long used, limit;
static launch_function launcher;

void stub_begin(launch_function function, long bytes) { launcher = function; limit = bytes; }

int cuInit(unsigned flags) { return SUCCESS; }
int cuDriverGetVersion(int *version) { *version = 99990; return SUCCESS; }
int cuDeviceGetCount(int *count) { *count = DEVICES; return SUCCESS; }
int cuDeviceGet(int *device, int number) { *device = number; return SUCCESS; }
int cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "Stand-in"); return SUCCESS; }
int cuDeviceGetUuid(char *uuid, int device) { memset(uuid, device, 16); return SUCCESS; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == MAJOR ? 9 : attribute == MINOR ? 0 : 1;
    return SUCCESS;
}
int cuDevicePrimaryCtxRetain(int **context, int device) { *context = &contexts[device]; return SUCCESS; }
int cuDevicePrimaryCtxRelease(int device) { return SUCCESS; }
int cuCtxGetDevice(int *device) { NEEDS_CONTEXT; *device = *stack[depth - 1]; return SUCCESS; }
int cuCtxGetCurrent(int **context) { *context = depth ? stack[depth - 1] : NULL; return SUCCESS; }
int cuCtxPushCurrent(int *context) { stack[depth++] = context; return SUCCESS; }
int cuCtxPopCurrent(int **context) { NEEDS_CONTEXT; *context = stack[--depth]; return SUCCESS; }
int cuCtxSynchronize(void) { NEEDS_CONTEXT; return SUCCESS; }

int cuMemAlloc(pointer *found, size_t size) {
    NEEDS_CONTEXT;
    pthread_mutex_lock(&memory);
    size_t *block = used + (long)size > limit ? NULL : malloc(16 + size);
    if (block) {
        used += size;
        *block = size;
        memset(block + 2, 0xA5, size);
        *found = (pointer)(block + 2);
    }
    pthread_mutex_unlock(&memory);
    return block ? SUCCESS : OUT_OF_MEMORY;
}
int cuMemFree(pointer found) {
    NEEDS_CONTEXT;
    size_t *block = (size_t *)found - 2;
    pthread_mutex_lock(&memory);
    used -= *block;
    pthread_mutex_unlock(&memory);
    free(block);
    return SUCCESS;
}
int cuMemGetInfo(size_t *left, size_t *total) { NEEDS_CONTEXT; *total = limit; *left = limit - used; return SUCCESS; }
int cuMemHostAlloc(void **found, size_t size, unsigned flags) { NEEDS_CONTEXT; *found = malloc(size); return SUCCESS; }
int cuMemFreeHost(void *found) { free(found); return SUCCESS; }

static int copy(pointer to, pointer from, size_t size) { NEEDS_CONTEXT; memcpy((void *)to, (void *)from, size); return SUCCESS; }
int cuMemcpyHtoD(pointer to, pointer from, size_t size) { return copy(to, from, size); }
int cuMemcpyDtoH(pointer to, pointer from, size_t size) { return copy(to, from, size); }
int cuMemcpyHtoDAsync(pointer to, pointer from, size_t size, void *stream) { return copy(to, from, size); }
int cuMemcpyDtoHAsync(pointer to, pointer from, size_t size, void *stream) { return copy(to, from, size); }
int cuMemcpyDtoDAsync(pointer to, pointer from, size_t size, void *stream) { return copy(to, from, size); }

int cuStreamCreate(void **stream, unsigned flags) { NEEDS_CONTEXT; *stream = malloc(1); return SUCCESS; }
int cuStreamDestroy(void *stream) { free(stream); return SUCCESS; }
int cuStreamSynchronize(void *stream) { NEEDS_CONTEXT; return SUCCESS; }

int cuLinkCreate(unsigned count, void *options, void *values, struct image **link) {
    *link = calloc(1, sizeof **link);
    return SUCCESS;
}
int cuLinkAddData(struct image *link, int kind, void *data, size_t size, const char *name, unsigned n, void *o, void *v) {
    link->data = memcpy(malloc(size), data, size);
    link->size = size;
    return SUCCESS;
}
int cuLinkComplete(struct image *link, void **data, size_t *size) { *data = link->data; *size = link->size; return SUCCESS; }
int cuLinkDestroy(struct image *link) { free(link->data); free(link); return SUCCESS; }
int cuModuleLoadDataEx(void **module, void *data, unsigned n, void *o, void *v) { NEEDS_CONTEXT; *module = malloc(1); return SUCCESS; }
int cuModuleUnload(void *module) { free(module); return SUCCESS; }
int cuModuleGetFunction(char **function, void *module, const char *name) { *function = strdup(name); return SUCCESS; }
int cuFuncGetAttribute(int *value, int attribute, void *function) { *value = 1; return SUCCESS; }
int cuFuncSetCacheConfig(void *function, int config) { return SUCCESS; }
int cuIpcOpenMemHandle(void *found, void *handle, unsigned flags) { return INVALID_CONTEXT; }

int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **arguments, void **extra) {
    NEEDS_CONTEXT;
    launcher(function, gx * bx, arguments, *stack[depth - 1]);
    return SUCCESS;
}
