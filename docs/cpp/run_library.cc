// Runs one kernel of a convtvm library from C++, with no Python and no compiler on the machine.
//
//   run_library FOLDER LIB.so WORKLOAD data.bin weight.bin bias.bin out.bin
//
// FOLDER is one that `convtvm deploy` wrote; the .bin files hold float32 numbers in C order, data in
// the library's layout, weight as [oc, ic/groups, kh, kw]. Build it with
//
//   g++ -std=c++17 -O2 run_library.cc -o run_library $(tvm-ffi-config --cxxflags) \
//       -LFOLDER/lib -ltvm_ffi -ldl -Wl,-rpath,FOLDER/lib
//
// Unlike `convtvm.load` it does not check that the CPU has the features that the library needs.

#include <dlfcn.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;
using Row = std::map<std::string, std::string>;

// The first row of kernels.tsv for `workload`: the best kernel.
Row FindKernel(const std::string& table, const std::string& workload) {
  std::ifstream file(table);
  std::string line, cell;
  std::vector<std::string> columns;
  while (std::getline(file, line)) {
    std::vector<std::string> cells;
    for (std::istringstream words(line); std::getline(words, cell, '\t');) cells.push_back(cell);
    if (columns.empty()) {
      columns = cells;
    } else if (cells.at(0) == workload) {
      Row row;
      for (size_t i = 0; i < columns.size(); ++i) row[columns[i]] = cells.at(i);
      return row;
    }
  }
  throw std::runtime_error("no kernel for " + workload + " in " + table);
}

// A float32 tensor on the CPU that owns its memory and hands it to kernels by DLPack.
struct Array {
  std::vector<int64_t> shape;
  std::vector<float> values;
  DLTensor view{};

  explicit Array(const std::string& text) {
    std::string size;
    for (std::istringstream sizes(text); std::getline(sizes, size, 'x');) {
      shape.push_back(std::stoll(size));
    }
    values.resize(std::accumulate(shape.begin(), shape.end(), size_t{1}, std::multiplies<>()));
    view.data = values.data();
    view.device = {kDLCPU, 0};
    view.ndim = static_cast<int32_t>(shape.size());
    view.dtype = {kDLFloat, 32, 1};
    view.shape = shape.data();
    strides.resize(shape.size(), 1);
    for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * shape[i];
    view.strides = strides.data();
  }

  void Read(const char* path) {
    std::ifstream file(path, std::ios::binary);
    file.read(reinterpret_cast<char*>(values.data()), values.size() * sizeof(float));
    if (file.gcount() != static_cast<std::streamsize>(values.size() * sizeof(float))) {
      throw std::runtime_error(std::string(path) + " is too short");
    }
  }

  void Write(const char* path) const {
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
  }

 private:
  std::vector<int64_t> strides;
};

int main(int argc, char** argv) try {
  if (argc != 8) throw std::runtime_error("expected FOLDER LIB.so WORKLOAD and four files");
  const std::string folder = argv[1];

  // Kernels find the thread pool and the workspaces through symbols of the run time, so it has to
  // be there, and visible, before the library is loaded.
  const std::string runtime = folder + "/lib/libtvm_runtime.so";
  if (!dlopen(runtime.c_str(), RTLD_NOW | RTLD_GLOBAL)) throw std::runtime_error(dlerror());
  Row kernel = FindKernel(folder + "/kernels.tsv", argv[3]);
  setenv("TVM_NUM_THREADS", kernel.at("threads").c_str(), 1);
  ffi::Module library = ffi::Module::LoadFromFile(folder + "/" + argv[2]);
  ffi::Function run = library->GetFunction(kernel.at("function")).value();
  ffi::Function pack = library->GetFunction(kernel.at("pack")).value();

  Array data(kernel.at("data")), weight(kernel.at("weight")), packed(kernel.at("packed"));
  Array out(kernel.at("out"));
  Array bias(kernel.at("weight").substr(0, kernel.at("weight").find('x')));  // [oc]
  data.Read(argv[4]);
  weight.Read(argv[5]);
  bias.Read(argv[6]);

  pack(&weight.view, &packed.view);  // once
  run(&data.view, &packed.view, &bias.view, &out.view);
  out.Write(argv[7]);
  std::printf("%s by %s\n", argv[3], kernel.at("algorithm").c_str());
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "run_library: %s\n", error.what());
  return 1;
}
