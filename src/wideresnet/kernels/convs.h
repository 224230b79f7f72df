/* The convolutions that program.c runs; described where they are defined. */

int wrn_stem(const float *x, const long *strides, long B, long H, long W, long in, long out, long kernel, long stride,
             int pooled, const float *w, const float *bias, const float *scale, const float *shift, void *values,
             unsigned char *bytes, int halves, int threads);
int wrn_conv(const float *x, long B, long H, long W, long in, long out, int kernel, int stride, const float *a,
             const float *b, const float *U, const float *add, const float *bias, float *y, double *sums, int threads);
int wrn_quantized_conv(const unsigned char *x, long B, long H, long W, long in, long out, long kernel, long stride,
                       const short *U, const float *rescale, const void *add, const float *bias, const float *scale,
                       const float *shift, void *values, unsigned char *bytes, int halves, int threads);
int wrn_direct_conv(const unsigned char *x, long B, long H, long W, long in, long out, long kernel, long stride,
                    const signed char *w, const float *rescale, const void *add, const float *bias,
                    const float *scale, const float *shift, void *values, unsigned char *bytes, int halves, int threads);
