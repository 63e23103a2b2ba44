/* A stand-in for libnvrtc: what it makes of a kernel's source has the kernel's name, takes no parameters and does nothing.
 * With the stand-in for the driver, set to `blank_kernels=1`, a program runs through with all its allocations, copies and
 * launches, and no arithmetic. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char ptx[1024];
} program;

/* The name before the list of parameters: "extern "C" __global__ void __launch_bounds__(256) NAME (". */
static int name_of(const char *source, char *name, size_t room) {
    const char *at = strstr(source, "__global__ void");
    if (at == NULL) {
        return 0;
    }
    at += strlen("__global__ void");
    for (;;) {
        at += strspn(at, " \n\t");
        size_t len = strcspn(at, " \n\t(");
        const char *open = at + len + strspn(at + len, " \n\t");
        if (len == 0 || *open != '(') {
            return 0;
        }
        if (strncmp(at, "__", 2) != 0) {
            if (len >= room) {
                return 0;
            }
            memcpy(name, at, len);
            name[len] = 0;
            return 1;
        }
        /* An attribute and what it is given. */
        at = strchr(open, ')');
        if (at == NULL) {
            return 0;
        }
        at += 1;
    }
}

int nvrtcCreateProgram(program **out, const char *source, const char *name, int headers, const char *const *texts,
                       const char *const *names) {
    (void)name, (void)headers, (void)texts, (void)names;
    char kernel[512];
    if (!name_of(source, kernel, sizeof kernel) || (*out = malloc(sizeof **out)) == NULL) {
        return 4;
    }
    snprintf((*out)->ptx, sizeof (*out)->ptx,
             ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry %s()\n{\nret;\n}\n", kernel);
    return 0;
}

int nvrtcCompileProgram(program *compiled, int count, const char *const *options) {
    (void)compiled, (void)count, (void)options;
    return 0;
}

int nvrtcGetPTXSize(program *compiled, size_t *size) {
    *size = strlen(compiled->ptx) + 1;
    return 0;
}

int nvrtcGetPTX(program *compiled, char *ptx) {
    strcpy(ptx, compiled->ptx);
    return 0;
}

int nvrtcDestroyProgram(program **compiled) {
    free(*compiled);
    *compiled = NULL;
    return 0;
}
