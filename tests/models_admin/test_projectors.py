from models_admin.files.projectors import Candidate, paired


def model(path: str, width: int | None = None, name: str = "") -> Candidate[str]:
    return Candidate(path, path, name, width)


def projector(
    path: str, width: int | None = None, name: str = "", quantization: str = "F16"
) -> Candidate[str]:
    return Candidate(path, path, name, width, quantization)


def test_a_folder_of_one_model_needs_no_names() -> None:
    models = [model("/m/gemma-3-4b-Q4_K_M.gguf"), model("/m/gemma-3-4b-Q8_0.gguf")]
    assert paired(models, [projector("/m/mmproj-model-f16.gguf")]) == {
        "/m/gemma-3-4b-Q4_K_M.gguf": "/m/mmproj-model-f16.gguf",
        "/m/gemma-3-4b-Q8_0.gguf": "/m/mmproj-model-f16.gguf",
    }


def test_other_folders_are_not_looked_into() -> None:
    assert paired([model("/m/a.gguf")], [projector("/m/sub/mmproj-a.gguf")]) == {}


def test_a_projector_of_another_width_is_refused() -> None:
    models = [model("/m/a.gguf", 2560)]
    assert paired(models, [projector("/m/mmproj-a.gguf", 4096)]) == {}
    assert paired(models, [projector("/m/mmproj-a.gguf", 2560)]) != {}


def test_among_several_models_the_name_decides() -> None:
    models = [
        model("/m/gemma-3-4b-it-Q4_K_M.gguf"),
        model("/m/Qwen2.5-VL-7B-Q4_0.gguf"),
        model("/m/llama.gguf"),
    ]
    projectors = [
        projector("/m/mmproj-gemma-3-4b-it-f16.gguf"),
        projector("/m/mmproj-qwen2.5-vl-7b-f16.gguf"),
    ]
    assert paired(models, projectors) == {
        "/m/gemma-3-4b-it-Q4_K_M.gguf": "/m/mmproj-gemma-3-4b-it-f16.gguf",
        "/m/Qwen2.5-VL-7B-Q4_0.gguf": "/m/mmproj-qwen2.5-vl-7b-f16.gguf",
    }


def test_among_several_models_one_without_a_name_is_asked_for_the_name_inside() -> None:
    models = [model("/m/a.gguf", name="Gemma 3 4b It"), model("/m/b.gguf", name="Llama 8B")]
    assert paired(models, [projector("/m/mmproj-F16.gguf", name="Gemma-3-4B-It")]) == {
        "/m/a.gguf": "/m/mmproj-F16.gguf"
    }
    assert paired(models, [projector("/m/mmproj-F16.gguf")]) == {}


def test_a_stranger_beside_a_lone_model_is_refused() -> None:
    assert paired([model("/m/llama-3-8b.gguf")], [projector("/m/mmproj-gemma.gguf")]) == {}


def test_the_choice_is_always_the_same_one() -> None:
    choices = [
        projector("/m/mmproj-F32.gguf", quantization="F32"),
        projector("/m/mmproj-BF16.gguf", quantization="BF16"),
        projector("/m/mmproj-F16.gguf", quantization="F16"),
        projector("/m/mmproj-odd.gguf", quantization="Q4_0"),
    ]
    for order in (choices, choices[::-1]):
        assert paired([model("/m/model-Q4_0.gguf")], order) == {"/m/model-Q4_0.gguf": "/m/mmproj-F16.gguf"}


def test_the_more_telling_name_wins_over_the_usual_precision() -> None:
    choices = [projector("/m/mmproj-F16.gguf"), projector("/m/mmproj-gemma-3.gguf", quantization="Q8_0")]
    assert paired([model("/m/gemma-3-4b.gguf")], choices) == {"/m/gemma-3-4b.gguf": "/m/mmproj-gemma-3.gguf"}
