/* Runs one kernel of a library under an emulator, in place of the Python run time.

   driver LIB.so FOLDER PACK CONV DATA WEIGHT PACKED BIAS OUT, the last five shapes as 1x8x6x6. Reads
   data, weight and bias from raw fp32 files of FOLDER and writes out there. What libtvm_runtime
   offers to kernels is here in the simplest form: one thread, malloc. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>

typedef struct {
  void *sync_handle;
  int32_t num_task;
} ParallelGroup;

static int parallel_launch(int (*task)(int, ParallelGroup *, void *), void *data, int num_task) {
  ParallelGroup group = {NULL, 1};
  (void)num_task;
  return task(0, &group, data);
}

static void *alloc_workspace(int type, int id, uint64_t bytes, int code, int bits) {
  (void)type, (void)id, (void)code, (void)bits;
  return aligned_alloc(64, (bytes + 63) / 64 * 64);
}

static int free_workspace(int type, int id, void *memory) {
  (void)type, (void)id;
  free(memory);
  return 0;
}

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int32_t i = 0; i < count; ++i) fputs(parts[i], stderr);
  fputc('\n', stderr);
}

static DLTensor tensor(char *shape) {
  int64_t *sizes = calloc(8, sizeof *sizes), count = 1;
  int32_t ndim = 0;
  for (char *word = strtok(shape, "x"); word; word = strtok(NULL, "x")) {
    sizes[ndim] = atoll(word);
    count *= sizes[ndim++];
  }
  int64_t *strides = calloc(8, sizeof *strides), stride = 1;
  for (int32_t i = ndim - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= sizes[i];
  }
  DLTensor made = {aligned_alloc(64, (count * 4 + 63) / 64 * 64), {kDLCPU, 0}, ndim,
                   {kDLFloat, 32, 1}, sizes, strides, 0};
  return made;
}

static void transfer(DLTensor *t, const char *folder, const char *name, const char *mode) {
  char path[4096];
  size_t count = 1;
  for (int32_t i = 0; i < t->ndim; ++i) count *= t->shape[i];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  FILE *file = fopen(path, mode);
  size_t done = !file             ? 0
                : mode[0] == 'r' ? fread(t->data, 4, count, file)
                                 : fwrite(t->data, 4, count, file);
  if (done != count || fclose(file)) {
    fprintf(stderr, "cannot transfer %s\n", path);
    exit(3);
  }
}

static void *symbol(void *library, const char *prefix, const char *name) {
  char full[512];
  snprintf(full, sizeof full, "%s%s", prefix, name);
  return dlsym(library, full);
}

static void set(void *library, const char *name, void *function) {
  void **slot = dlsym(library, name);
  if (slot) *slot = function;
}

static void call(void *library, const char *name, DLTensor **tensors, int count) {
  TVMFFISafeCallType function = (TVMFFISafeCallType)symbol(library, "__tvm_ffi_", name);
  TVMFFIAny args[4], result = {0};
  memset(args, 0, sizeof args);
  for (int i = 0; i < count; ++i) {
    args[i].type_index = kTVMFFIDLTensorPtr;
    args[i].v_ptr = tensors[i];
  }
  if (!function || function(NULL, args, count, &result)) {
    fprintf(stderr, "%s failed\n", name);
    exit(4);
  }
}

int main(int argc, char **argv) {
  if (argc != 10) return 2;
  void *library = dlopen(argv[1], RTLD_NOW);
  if (!library) {
    fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  set(library, "__TVMBackendParallelLaunch", (void *)parallel_launch);
  set(library, "__TVMBackendAllocWorkspace", (void *)alloc_workspace);
  set(library, "__TVMBackendFreeWorkspace", (void *)free_workspace);
  DLTensor data = tensor(argv[5]), weight = tensor(argv[6]), packed = tensor(argv[7]);
  DLTensor bias = tensor(argv[8]), out = tensor(argv[9]);
  transfer(&data, argv[2], "data", "r");
  transfer(&weight, argv[2], "weight", "r");
  transfer(&bias, argv[2], "bias", "r");
  call(library, argv[3], (DLTensor *[]){&weight, &packed}, 2);
  call(library, argv[4], (DLTensor *[]){&data, &packed, &bias, &out}, 4);
  transfer(&out, argv[2], "out", "w");
  return 0;
}
