"""The 36 documented defects of the existing implementations: which test keeps each of them out.

The numbers are those of the list the project started from; what each says is in the comment. Defects that
no other test looks at are tested here.
"""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

from sdbridge.engine.image.guidance import clean_shares, estimate
from sdbridge.engine.image.schedule import noise_schedule, timestep_grid
from sdbridge.frame import Chunk, Frame
from tests.engine.image.rig import Rig, frame

TESTS = Path(__file__).parents[2]
PACKAGE = TESTS.parent / "sdbridge"

KEPT_OUT: dict[int, tuple[str, ...]] = {
    1: (  # residual guidance runs away at one step
        "engine/image/test_oracles.py::test_self_guidance_at_one_step_stays_finite_where_the_recursion_explodes",
        "engine/image/test_walks.py::test_one_step_self_guidance_stays_finite_over_1000_frames_in_half_precision",
    ),
    2: ("engine/image/test_defects.py::test_bright_frames_are_encoded_as_they_are",),
    3: ("engine/image/test_defects.py::test_half_precision_never_divides_by_a_small_alpha",),
    4: ("engine/image/test_prompt.py::test_sdxl_pooled_and_sizes_follow_every_change",),
    5: ("engine/image/test_live.py::test_latent_feedback_drifts_neither_in_mean_nor_in_contrast",),
    6: ("engine/image/test_live.py::test_the_feature_bank_off_is_plain_attention_and_on_starts_from_it",),
    7: ("engine/image/test_defects.py::test_every_sampler_that_can_be_chosen_has_steps_of_its_own",),
    8: (  # residual guidance silently off without a batch
        "engine/image/test_oracles.py::test_the_closed_form_equals_the_published_recursion",
        "engine/image/test_defects.py::test_every_mode_of_guidance_works_at_one_step_and_takes_new_prompts",
    ),
    9: ("engine/image/test_defects.py::test_every_mode_of_guidance_works_at_one_step_and_takes_new_prompts",),
    10: ("engine/image/test_oracles.py::test_guidance_goes_through_one_without_a_jump",),
    11: (  # two frames and more than one step
        "engine/image/test_oracles.py::test_two_frames_a_step_give_the_pictures_of_one_frame_a_step",
        "engine/image/test_live.py::test_the_frame_batch_changes_live_and_all_frames_come_out",
    ),
    12: ("engine/image/test_live.py::test_each_frame_is_one_call_with_the_expected_rows_whatever_changes",),
    13: ("engine/image/test_live.py::test_txt2img_fills_its_pipe_and_goes_on_without_input",),
    14: (
        "engine/image/test_oracles.py::test_one_step_equals_the_image_to_image_pipeline",
    ),  # stock diffusers
    15: (  # txt2img with guidance, pictures that are not square
        "engine/image/test_defects.py::test_every_mode_of_guidance_works_in_txt2img",
        "engine/image/test_live.py::test_a_new_size_applies_between_two_frames_and_frames_of_the_old_size_are_fitted",
    ),
    16: (  # negative prompts that are ignored
        "engine/image/test_oracles.py::test_full_and_initialize_use_the_negative_prompt_and_the_others_say_they_do_not",
    ),
    17: ("engine/image/test_defects.py::test_a_seed_survives_every_other_change_and_a_reset",),
    18: ("engine/image/test_seed_similarity.py::test_every_way_of_setting_a_seed_gives_the_same_noise",),
    19: ("engine/image/test_controlnet.py::test_start_and_end_hold_for_each_row_by_its_timestep",),
    20: (  # models told by their names
        "engine/image/test_load.py::test_the_sampler_comes_from_the_config_and_not_the_name",
        "engine/image/test_published_layouts.py::test_every_tensor_of_the_published_file_finds_its_place",
    ),
    21: (  # LoRAs fused again and again
        "engine/image/test_lora.py::test_two_loras_equal_diffusers_fuse",
        "engine/image/test_lora.py::test_a_thousand_moves_read_no_file_and_zero_restores_bit_for_bit",
    ),
    22: ("engine/image/test_live.py::test_max_skip_is_exact_and_a_parameter_change_is_never_skipped",),
    23: ("engine/accelerate/test_tensorrt_cache.py::*",),  # TensorRT engines of something else
    24: (  # one ControlNet twice
        "engine/image/test_controlnet.py::test_two_adapters_and_two_controlnets_add_up",
        "engine/image/test_controlnet.py::test_swapping_two_slots_loads_nothing",
    ),
    25: (
        "engine/image/test_prompt.py::test_texts_are_cached_whatever_their_slot_and_made_again_for_a_changed_encoder",
    ),
    26: ("engine/image/test_on_gpu.py::test_a_tick_waits_for_the_device_only_to_hand_the_frame_out",),
    27: (  # falling back in silence
        "engine/image/test_accelerate.py::test_what_cannot_be_captured_runs_operation_by_operation_and_says_so",
        "test_architecture.py::test_broad_except_stands_only_at_the_three_edges_and_says_why",
    ),
    28: (  # memory that is not given back
        "engine/image/test_on_gpu.py::test_unload_gives_the_memory_back",
        "engine/image/test_conditioning_live.py::test_sixty_random_operations_leak_nothing_and_miss_no_frame",
    ),
    29: ("engine/image/test_controlnet.py::test_each_row_has_the_map_of_its_own_frame",),
    30: ("engine/image/test_conditioning_live.py::test_random_operations_while_loading_goes_on",),
    31: (
        "engine/image/test_live.py::test_a_still_input_drains_the_pipe_then_costs_nothing_and_resumes_in_one_frame",
    ),
    32: ("engine/image/test_defects.py::test_importing_changes_nothing_for_the_rest_of_the_program",),
    33: (  # 77 tokens, weights, clip skip
        "engine/image/test_prompt.py::test_long_texts_become_chunks_and_the_longest_are_cut_with_a_count",
        "engine/image/test_prompt.py::test_weighting_syntax",
        "engine/image/test_prompt.py::test_plain_texts_are_embedded_as_diffusers_does",
    ),
    34: (  # v prediction
        "engine/image/test_oracles.py::test_one_step_equals_the_image_to_image_pipeline",
        "engine/image/test_load.py::test_what_a_model_predicts_is_told_from_one_call_when_no_config_says",
    ),
    35: ("engine/image/test_defects.py::test_no_preprocessor_needs_a_package_that_is_optional",),
    36: (
        "test_architecture.py::test_only_the_engine_and_the_model_files_import_torch",
    ),  # a process of its own
}
VALUES = {"prompt.1.text": "waves", "scheduler": "lcm", "guidance_mode": "none"}


def test_each_of_the_36_names_tests_that_are_there() -> None:
    assert sorted(KEPT_OUT) == list(range(1, 37))
    for number, tests in KEPT_OUT.items():
        for name in tests:
            file, _, function = name.partition("::")
            source = (TESTS / file).read_text(encoding="utf-8")
            assert function == "*" or f"def {function}(" in source, (number, name)


@pytest.mark.parametrize("size", [64, 96], ids=["of the stream's size", "of another size"])
def test_bright_frames_are_encoded_as_they_are(checkpoint, size: int) -> None:
    """Defect 2: a range guessed from the smallest value took white-outs for pictures in 0..1."""
    rig = Rig(checkpoint(), VALUES, dtype="float32")
    encoder = rig.model.vae.encoder
    seen: list[torch.Tensor] = []
    encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0].clone()))
    for value in (128, 200, 255, 20):
        rig.tick(Chunk.of(Frame(np.full((size, size, 4), value, np.uint8), value, 0)))
        assert torch.allclose(seen[-1], torch.full_like(seen[-1], value / 127.5 - 1), atol=1e-6), value


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_half_precision_never_divides_by_a_small_alpha(checkpoint, prediction: str) -> None:
    """Defect 3: x0 = X / a - b e / a at t = 999, a = .068. The model's half answer is divided in float32."""
    rig = Rig(checkpoint(), VALUES, dtype="float16")
    assert rig.model.dtype == torch.float16 and rig.engine.painter._stream.precision == torch.float32
    schedule = noise_schedule({})
    alpha, sigma = schedule.alpha(999), schedule.sigma(999)
    torch.manual_seed(0)
    latents, out = torch.randn(1, 4, 64, 64), torch.randn(1, 4, 64, 64).half()
    shares = [torch.tensor(value, dtype=torch.float64) for value in clean_shares(alpha, sigma, prediction)]
    wanted = shares[0] * latents.double() + shares[1] * out.double()
    found = estimate(out, latents, *(share.float() for share in shares), torch.empty_like(latents))
    assert found.dtype == torch.float32
    assert float((found - wanted).abs().max() / wanted.abs().max()) <= 1e-6


def test_every_sampler_that_can_be_chosen_has_steps_of_its_own() -> None:
    """Defect 7: spacings that were offered and read by nobody."""
    grids = {
        sampler: tuple(timestep_grid(sampler, steps) for steps in (1, 4, 7, 50))  # type: ignore[arg-type]
        for sampler in ("lcm", "turbo")
    }
    assert grids["lcm"] != grids["turbo"]
    assert grids["lcm"][1] == (999, 759, 499, 259) and grids["turbo"][1] == (999, 749, 499, 249)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("mode", ["none", "self", "initialize", "full"])
def test_every_mode_of_guidance_works_at_one_step_and_takes_new_prompts(checkpoint, mode, steps) -> None:
    """Defects 8 and 9: a new prompt dropped half of the rows, one step switched guidance off."""
    rig = Rig(checkpoint(), {**VALUES, "steps": steps, "strength": 0.8}, dtype="float32")
    for number in range(3):
        rig.tick(frame(number, seed=1))
    plain = rig.latents[-1]
    rig.set(guidance_mode=mode, guidance_scale=2.0, negative_prompt="ice")
    for number in range(3, 6):
        rig.tick(frame(number, seed=1))
    guided = rig.latents[-1]
    assert torch.equal(guided, plain) == (mode == "none")
    for number, text in enumerate(("fire", "a much longer text about clouds and rivers", "fire"), 6):
        rig.set(prompt__1__text=text)
        assert rig.tick(frame(number, seed=1)) is not None
    extra = {"none": 0, "self": 0, "initialize": 1, "full": steps}[mode]
    assert rig.calls[-1].encoder_hidden_states.shape[0] == steps + extra
    assert rig.latents[-1].isfinite().all()


@pytest.mark.parametrize("mode", ["self", "initialize", "full"])
def test_every_mode_of_guidance_works_in_txt2img(checkpoint, mode) -> None:
    """Defect 15: txt2img forbade guidance."""
    made = {}
    for scale in (1.0, 2.0):
        rig = Rig(checkpoint(), {**VALUES, "mode": "txt2img", "steps": 2}, dtype="float32")
        rig.set(guidance_mode=mode, guidance_scale=scale)
        for _ in range(4):
            rig.tick(None)
        made[scale] = rig.latents[-1]
        assert made[scale].isfinite().all()
    assert not torch.equal(made[1.0], made[2.0])


def test_a_seed_survives_every_other_change_and_a_reset(checkpoint) -> None:
    """Defect 17: each preparation went back to seed 2."""
    rig = Rig(checkpoint(), {**VALUES, "seed.1.value": 11, "step_indices": "20"})
    first = rig.latent_of(frame(0))
    for change in ({"width": 128}, {"step_indices": "10,30"}, {"prompt__1__text": "x"}, {"mode": "txt2img"}):
        rig.set(**change)
        rig.tick(frame(1))
    rig.set(width=64, step_indices="20", prompt__1__text="waves", mode="img2img")
    rig.engine.reset("hard")
    assert torch.equal(rig.latent_of(frame(0)), first)
    rig.set(seed__1__value=2)
    rig.engine.reset("hard")
    assert not torch.equal(rig.latent_of(frame(0)), first)


#: What would hold for everything else in the program, and what it is called on.
_GLOBAL = (
    "set_grad_enabled",
    "basicConfig",
    "set_default_dtype",
    "set_float32_matmul_precision",
    "allow_tf32",
)


def test_importing_changes_nothing_for_the_rest_of_the_program() -> None:
    """Defect 32: gradients, logging and TF32 were switched by importing the library."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                continue
            for node in ast.walk(statement):
                named = getattr(node, "attr", getattr(node, "id", ""))
                if named in _GLOBAL and isinstance(getattr(node, "ctx", None), ast.Load | ast.Store):
                    found.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {named}")  # type: ignore[attr-defined]
    assert not found


#: What other tools' preprocessors need; ours are tensors on the device, none goes through PIL or OpenCV.
OPTIONAL = {"controlnet_aux", "cv2", "PIL", "mediapipe", "timm", "onnxruntime", "skimage", "scipy", "kornia"}


def test_no_preprocessor_needs_a_package_that_is_optional() -> None:
    """Defect 35: importing failed without controlnet_aux."""
    for path in sorted((PACKAGE / "engine" / "preprocess").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = (
                    [node.module or ""] if isinstance(node, ast.ImportFrom) else [n.name for n in node.names]
                )
                roots = {name.split(".")[0] for name in names}
                assert not roots & OPTIONAL, (path.name, roots)
