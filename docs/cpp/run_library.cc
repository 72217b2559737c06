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
// Of a library for several CPUs it runs the kernels of the best one that this CPU can run. It does
// not check the library's checksum as `convtvm.load` does.

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
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;
using Row = std::map<std::string, std::string>;

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> parts;
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

// The first row of kernels.tsv for `workload` that this CPU can run: the best kernel.
Row FindKernel(const std::string& table, const std::string& workload) {
  const std::set<std::string> flags = CpuFlags();
  std::ifstream file(table);
  std::vector<std::string> columns;
  std::string line, lacking;
  while (std::getline(file, line)) {
    std::vector<std::string> cells = Split(line, '\t');
    if (columns.empty()) {
      columns = cells;
    } else if (cells.at(0) == workload) {
      Row row;
      for (size_t i = 0; i < columns.size(); ++i) row[columns[i]] = i < cells.size() ? cells[i] : "";
      std::string missing;
      for (const std::string& flag : Split(row["cpu_flags"], ',')) {
        if (!flags.count(flag)) missing += " " + flag;
      }
      if (missing.empty()) return row;
      lacking = missing;
    }
  }
  if (!lacking.empty()) throw std::runtime_error("this CPU lacks" + lacking);
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

  // Kernels find workspaces through symbols of the run time, so it has to be there, and visible,
  // before the library is loaded. Threads the library starts itself, as many as it was compiled for
  // and the caller has CPUs.
  const std::string runtime = folder + "/lib/libtvm_runtime.so";
  if (!dlopen(runtime.c_str(), RTLD_NOW | RTLD_GLOBAL)) throw std::runtime_error(dlerror());
  Row kernel = FindKernel(folder + "/kernels.tsv", argv[3]);
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
