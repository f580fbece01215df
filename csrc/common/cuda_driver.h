// The versions of the CUDA toolkit that built the module and of the driver of this machine.
#pragma once

namespace bf {

int toolkit_version();  // 1000 major + 10 minor
int driver_version();   // likewise, the newest CUDA that the installed driver serves; 0: no driver

}  // namespace bf
