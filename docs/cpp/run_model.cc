// Runs a convtvm model library from C++, with no Python and no compiler on the machine.
//
//   run_model FOLDER MODEL.so INPUT.bin ... OUTPUT.bin ...
//
// FOLDER is one that `convtvm deploy` wrote for a model; its steps.tsv says what to call. The .bin
// files hold the numbers of the inputs and outputs in C order, in the model's order and types. Build
// it with
//
//   g++ -std=c++17 -O2 run_model.cc -o run_model $(tvm-ffi-config --cxxflags) \
//       -LFOLDER/lib -ltvm_ffi -ldl -Wl,-rpath,FOLDER/lib
//
// Of a model for several CPUs it runs the best one that this CPU can run. It does not check the
// checksums as `convtvm.load_model` does.

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;
using Fields = std::vector<std::string>;

Fields Split(const std::string& text, char separator) {
  Fields parts;
  std::string part;
  for (std::istringstream rest(text); std::getline(rest, part, separator);) parts.push_back(part);
  return parts;
}

// What this CPU can do, as Linux calls it.
std::set<std::string> CpuFlags() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("flags", 0) != 0) continue;
    std::istringstream words(line);
    return {std::istream_iterator<std::string>(words), {}};
  }
  return {};
}

// The lines of steps.tsv for the first target that this CPU can run.
std::vector<Fields> ReadSection(const std::string& path) {
  const std::set<std::string> flags = CpuFlags();
  std::ifstream file(path);
  std::vector<Fields> section;
  std::string lacking;
  bool fits = false;
  for (std::string line; std::getline(file, line);) {
    Fields fields = Split(line, '\t');
    if (fields.at(0) == "target") {
      if (fits) break;
      std::string missing;
      for (const std::string& flag : Split(fields.at(2), ',')) {
        if (!flags.count(flag)) missing += " " + flag;
      }
      fits = missing.empty();
      if (!fits) lacking = missing;
    }
    if (fits) section.push_back(fields);
  }
  if (section.empty()) {
    throw std::runtime_error(lacking.empty() ? "cannot read " + path : "this CPU lacks" + lacking);
  }
  return section;
}

struct FreeMemory {
  void operator()(char* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<char, FreeMemory>;

Memory Allocate(size_t bytes) {
  const size_t line = 64;  // bytes of a cache line
  Memory memory(static_cast<char*>(std::aligned_alloc(line, (bytes / line + 1) * line)));
  if (!memory) throw std::bad_alloc();
  return memory;
}

// A tensor over memory of the arena, of the file, or of its own.
struct Value {
  std::vector<int64_t> shape, strides;
  DLTensor view{};
  size_t bytes = 0;
  Memory own;

  Value(const std::string& dtype, const std::string& sizes) {
    static const std::map<std::string, DLDataType> kTypes = {
        {"float32", {kDLFloat, 32, 1}}, {"float64", {kDLFloat, 64, 1}},
        {"float16", {kDLFloat, 16, 1}}, {"bool", {kDLBool, 8, 1}},
        {"int64", {kDLInt, 64, 1}},     {"int32", {kDLInt, 32, 1}},
        {"int16", {kDLInt, 16, 1}},     {"int8", {kDLInt, 8, 1}},
        {"uint64", {kDLUInt, 64, 1}},   {"uint32", {kDLUInt, 32, 1}},
        {"uint16", {kDLUInt, 16, 1}},   {"uint8", {kDLUInt, 8, 1}}};
    if (sizes != "scalar") {
      for (const std::string& size : Split(sizes, 'x')) shape.push_back(std::stoll(size));
    }
    strides.resize(shape.size(), 1);
    for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * shape[i];
    view.device = {kDLCPU, 0};
    view.dtype = kTypes.at(dtype);
    bytes = view.dtype.bits / 8;
    for (int64_t size : shape) bytes *= size;
    view.ndim = static_cast<int32_t>(shape.size());
    view.shape = shape.data();
    view.strides = strides.data();
  }
};

// The model library mapped into memory; nobody writes it, but kernels take writable tensors.
char* Map(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY);
  struct stat facts {};
  if (file < 0 || fstat(file, &facts)) throw std::runtime_error("cannot read " + path);
  void* start = mmap(nullptr, facts.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
  if (start == MAP_FAILED) throw std::runtime_error("cannot map " + path);
  return static_cast<char*>(start);
}

struct Call {
  ffi::Function function;
  std::vector<ffi::AnyView> arguments;

  void operator()() const {
    ffi::Any result;
    function.CallPacked(arguments.data(), static_cast<int32_t>(arguments.size()), &result);
  }
};

class Model {
 public:
  Model(const std::string& folder, const std::string& name) {
    const std::vector<Fields> lines = ReadSection(folder + "/steps.tsv");
    // Kernels find the thread pool and the workspaces through symbols of the run time, so it has
    // to be there, and visible, before the library is loaded.
    const std::string runtime = folder + "/lib/libtvm_runtime.so";
    if (!dlopen(runtime.c_str(), RTLD_NOW | RTLD_GLOBAL)) throw std::runtime_error(dlerror());
    setenv("TVM_NUM_THREADS", lines.at(0).at(3).c_str(), 1);
    arena_ = Allocate(std::stoull(lines.at(0).at(4)));
    library_ = ffi::Module::LoadFromFile(folder + "/" + name);
    char* file = Map(folder + "/" + name);
    for (const Fields& line : lines) {
      if (line[0] == "value") AddValue(line, file);
    }
    for (const Fields& line : lines) {
      if (line[0] == "value" && line[4].rfind("alias ", 0) == 0) {
        values_.at(std::stoul(line[1]))->view.data = At(line[4].substr(6)).view.data;
      }
    }
    for (const Fields& line : lines) {
      if (line[0] == "pack") MakeCall(line)();
      if (line[0] == "step") steps_.push_back(MakeCall(line));
      if (line[0] == "input") inputs.push_back(&At(line[2]));
      if (line[0] == "output") outputs.push_back(&At(line[2]));
    }
  }

  void Run() const {
    for (const Call& step : steps_) step();
  }

  std::vector<Value*> inputs, outputs;

 private:
  Value& At(const std::string& number) { return *values_.at(std::stoul(number)); }

  void AddValue(const Fields& line, char* file) {
    auto value = std::make_unique<Value>(line.at(2), line.at(3));
    const Fields place = Split(line.at(4), ' ');
    if (place[0] == "arena") {
      value->view.data = arena_.get() + std::stoull(place.at(1));
    } else if (place[0] == "file") {
      value->view.data = file + std::stoull(place.at(1));
    } else if (place[0] != "alias" && place[0] != "none") {
      value->own = Allocate(value->bytes);
      value->view.data = value->own.get();
    }
    values_.push_back(std::move(value));
  }

  Call MakeCall(const Fields& line) {
    Call call{(*library_)->GetFunction(line.at(2)).value(), {}};
    for (size_t i = 3; i < line.size(); ++i) {
      if (line[i].find_first_not_of("0123456789") == std::string::npos) {
        call.arguments.emplace_back(&At(line[i]).view);
      } else {
        call.arguments.emplace_back(std::strtod(line[i].c_str(), nullptr));
      }
    }
    return call;
  }

  std::optional<ffi::Module> library_;
  Memory arena_;
  std::vector<std::unique_ptr<Value>> values_;
  std::vector<Call> steps_;
};

int main(int argc, char** argv) try {
  if (argc < 3) throw std::runtime_error("expected FOLDER MODEL.so INPUT.bin ... OUTPUT.bin ...");
  Model model(argv[1], argv[2]);
  if (argc != 3 + static_cast<int>(model.inputs.size() + model.outputs.size())) {
    throw std::runtime_error("expected a file for each input and output");
  }
  char** path = argv + 3;
  for (Value* input : model.inputs) {
    std::ifstream file(*path, std::ios::binary);
    file.read(static_cast<char*>(input->view.data), input->bytes);
    if (file.gcount() != static_cast<std::streamsize>(input->bytes)) {
      throw std::runtime_error(std::string(*path) + " is too short");
    }
    ++path;
  }
  model.Run();
  for (Value* output : model.outputs) {
    std::ofstream file(*path++, std::ios::binary);
    file.write(static_cast<const char*>(output->view.data), output->bytes);
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "run_model: %s\n", error.what());
  return 1;
}
