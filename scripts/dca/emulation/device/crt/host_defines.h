// What CUDA's headers need of crt/host_defines.h, which the packages of its run time lack. Host code compiles with empty
// annotations.
#ifndef DCA_EMULATION_HOST_DEFINES_H
#define DCA_EMULATION_HOST_DEFINES_H

#define CUDARTAPI
#define CUDARTAPI_CDECL
#define __align__(n) __attribute__((aligned(n)))
#define __annotate__(a)
#define __location__(a)
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define __builtin_align__(n) __align__(n)
#define __host__
#define __device__
#define __global__
#define __shared__
#define __constant__
#define __managed__
#define __cluster_dims__(...)
#define __specialization_static

#endif
