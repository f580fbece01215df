"""What a launch counts."""

from __future__ import annotations

import pytest
import torch

from gpu_code import executor
from gpu_code.memory import Memory

WIDTHS = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry widths(.param .u64 x)
{
	.reg .pred %p<2>;
	.reg .b16 %h<3>;
	.reg .b32 %r<9>;
	.reg .b64 %rd<4>;
	.shared .align 16 .b8 tile[1024];
	ld.param.u64 %rd1, [x];
	mov.u32 %r1, %tid.x;
	mul.wide.u32 %rd2, %r1, 16;
	add.s64 %rd3, %rd1, %rd2;
	setp.lt.u32 %p1, %r1, 5;
	@%p1 ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%rd3];
	@%p1 ld.global.v2.u16 {%h1, %h2}, [%rd3];
	st.u8 [%rd3], %h1;
	ld.global.u16 %h2, [%rd1];
	shl.b32 %r6, %r1, 4;
	mov.u32 %r7, tile;
	add.s32 %r7, %r7, %r6;
	mov.u32 %r8, 4;
	cp.async.ca.shared.global [%r7], [%rd3], 8, %r8;
	cp.async.wait_all;
	ld.shared.u32 %r8, [%r7];
	@%p1 red.global.add.u32 [%rd3+4], %r8;
	ret;
}
"""


@pytest.mark.parametrize("check", [True, False])
def test_bytes_moved_by_the_width_of_an_access(check):
    """Masked lanes move nothing, shared memory is not counted, neighbours that read one address move it once; an atomic
    reads and writes 4 bytes, and the copy of 8 bytes brings 4.
    """
    kernel = executor.load(WIDTHS, name="widths.ptx")["widths"]
    x = torch.zeros(32, 4, dtype=torch.int32)
    report = Memory().launch(kernel, (2, 1, 1), (32, 1, 1), x, check=check, order="forward")
    each = {1: 32, 2: 2, 4: 5 * 4 + 5 * 8, 8: 32 * 4, 16: 5 * 16}
    assert report.moved == {width: 2 * moved for width, moved in each.items()}
