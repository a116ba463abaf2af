// Reads the section "plans": the schedules of a network.
#pragma once

#include <string>
#include <vector>

#include "network.h"

namespace ts::standalone {

// Of the schedules in the file, those that this processor can run, checked. `in_file` becomes the names of all sets.
std::vector<Schedule> read_schedules(const Sections& sections, const Texts& texts, const Description& input,
                                     const std::vector<Description>& outputs, std::string* in_file);

}  // namespace ts::standalone
