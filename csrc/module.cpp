// The extension module `ivl.kernels._cpu`. Each subject binds itself in its own file; ivl.kernels.cpu
// is its only user and holds the documentation for Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "isa.hpp"

namespace nb = nanobind;

void bind_limits(nb::module_&);
void bind_matmul(nb::module_&);
void bind_quantize(nb::module_&);
void bind_decoder(nb::module_&);
void bind_dense(nb::module_&);
void bind_threads(nb::module_&);

NB_MODULE(_cpu, m) {
  // Changes whenever a function is called in another way: an extension that was built from older
  // sources is recognised by it (ivl.kernels.cpu).
  m.attr("interface") = 4;
  m.def("isa", [] { return std::string(ivl::isa_name(ivl::current_isa())); });
  m.def("use_isa", &ivl::use_isa);
  m.def("usable_isas", [] {
    std::vector<std::string> names;
    for (ivl::Isa isa : ivl::usable_isas()) names.emplace_back(ivl::isa_name(isa));
    return names;
  });
  bind_limits(m);
  bind_matmul(m);
  bind_quantize(m);
  bind_decoder(m);
  bind_dense(m);
  bind_threads(m);
}
