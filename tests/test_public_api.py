"""The names that programs may rely on. A change here is a change for users: it belongs into CHANGELOG.md."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import tfdet

PUBLIC = {
    "tfdet": "load",
    "tfdet.addons": "available get",
    "tfdet.anchors": "best_iou kmeans measure read rounded sides_at_input to_text use",
    "tfdet.boxes": "area clip decode_deltas encode_deltas flip_horizontally flip_vertically from_window from_yxhw "
    "intersection iou is_valid letterbox_window to_cxcywh to_window to_xyxy to_yxyx union",
    "tfdet.cli": "choose completion load main parser_of programs refuse rename run",
    "tfdet.compat": "TF_VERSION keras",
    "tfdet.config": "AugmentConfig Config ConfigError DataConfig NmsConfig PriorLayout SsdConfig StageConfig "
    "TrainConfig YoloConfig from_json override to_json",
    "tfdet.configs": "load",
    "tfdet.configs.recipes": "apply",
    "tfdet.contact_sheet": "augmented_sheet",
    "tfdet.data.annotations": "Annotation AnnotationError FRAMES KINDS Listing NOTES Problem read_annotations "
    "relative_boxes split_listings to_annotation turn_boxes",
    "tfdet.data.beam": "run_in_pipeline write_whole_shard",
    "tfdet.data.checks": "Checks allowed_policies check_image count_cut count_dropped count_kinds examine "
    "make_policies",
    "tfdet.data.convert": "Report convert",
    "tfdet.data.doctor": "Diagnosis Finding diagnose suspect_classes without_same_content without_shared",
    "tfdet.data.embedded": "file_of file_size is_embedded name read_bytes",
    "tfdet.data.errors": "AnnotationError DataError ImageError RecordError",
    "tfdet.data.faults": "find_faults leave_out list_faults named",
    "tfdet.data.formats": "FORMATS Source WRITABLE read read_class_names recognise require_new save",
    "tfdet.data.formats.results": "coco_box coco_image_ids coco_results whole_pixels",
    "tfdet.data.images": "EncodedImage ImageError ImageOptions STORES displayed_size read_header read_image "
    "read_thumbnail",
    "tfdet.data.inputs": "Photo find_images listed",
    "tfdet.data.manifest": "check_shard files_of load_index read_index read_manifest",
    "tfdet.data.pipeline": "box_dataset eval_dataset image_dataset ladder steps_per_epoch train_dataset",
    "tfdet.data.reading": "Held all_records hold map_in_graph map_rows read_by_number read_in_order read_sequentially "
    "steps_per_epoch",
    "tfdet.data.records": "RecordError RecordSet open_split parse read_index",
    "tfdet.data.rewrite": "Rewritten rewrite",
    "tfdet.data.statistics": "Facts summarise",
    "tfdet.data.storage": "compare_storage describe",
    "tfdet.data.stored": "Fault encode_id first_records image_ids verify",
    "tfdet.data.service": "check_address served_dataset",
    "tfdet.data.synthetic": "make_photos make_shapes write_both",
    "tfdet.data.workers": "run_jobs",
    "tfdet.detectors": "build",
    "tfdet.detectors.base": "Detector",
    "tfdet.detectors.postprocess": "detect to_photo",
    "tfdet.detectors.priors": "count_priors load_priors make_priors save_priors to_cxcywh to_xyxy",
    "tfdet.detectors.runs": "load",
    "tfdet.detectors.ssd": "Ssd detection_rows",
    "tfdet.detectors.yolo": "Yolo",
    "tfdet.draw": "class_colour draw_boxes",
    "tfdet.draw.anchors": "save_clusters",
    "tfdet.draw.charts": "save_confusion save_precision_recall",
    "tfdet.draw.distributions": "bars heat_map histogram log_histogram scatter",
    "tfdet.draw.sheet": "Cell contact_sheet",
    "tfdet.evaluate": "coco_results coco_truth collect evaluate flat_arrays read_photo save_plots summarise",
    "tfdet.export": "KINDS export fixed_size_module serving_module",
    "tfdet.metrics": "COCO_FIGURES Curve Detections GroundTruth Mistake coco_ap confusion curve_ap mean_ap misses "
    "voc_ap voc_curves wrong_detections",
    "tfdet.models.darknet": "build",
    "tfdet.models.layers": "CaffePreprocess Columns Double L2Normalization batch_norm class_head_bias "
    "clone_with_batch_norm prior_layout size_named ssd_outputs",
    "tfdet.models.mobilenet": "build",
    "tfdet.models.ssd_vgg": "build",
    "tfdet.models.class_heads": "Head count_classes find merge parse_keep",
    "tfdet.models.weights": "Audit Row WeightsError load",
    "tfdet.nms": "non_max_suppression",
    "tfdet.nms.plain": "plain_nms",
    "tfdet.pictures": "Samples",
    "tfdet.predict": "Photo Prediction Predictor find_images load",
    "tfdet.report": "write_page",
    "tfdet.schema": "record_features",
    "tfdet.unmatched": "Counts count describe",
    "tfdet.timing": "Rate compare cpu_seconds measure peak_rss_mb",
    "tfdet.train.averages": "MovingAverages WeightAverages",
    "tfdet.train.devices": "choose_strategy describe describe_gpus",
    "tfdet.train.errors": "TrainingError",
    "tfdet.train.guard": "Guard describe_dump image_ids read_dump write_dump",
    "tfdet.train.loop": "TrainingError fit",
    "tfdet.train.optimizers": "build_optimizer counters create_slots inner l2 make_averages rate_of",
    "tfdet.train.pace": "Pace",
    "tfdet.train.part": "Part",
    "tfdet.train.setup": "build_model enable_determinism find_layers freeze new_model require_possible "
    "synchronise_batch_norm",
    "tfdet.train.signals": "Requested Requests Terminated",
    "tfdet.train.stages": "callbacks describe freeze next_progress open_part parts remaining require_possible",
    "tfdet.train.step": "distribute fill make_eval_step make_train_step require_even_split",
}


def public_names(module):
    """`__all__` where there is one, else the functions and classes that the module defines."""
    if hasattr(module, "__all__"):
        return set(module.__all__)
    with open(module.__file__, encoding="utf-8") as file:
        body = ast.parse(file.read()).body
    return {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_"}


@pytest.mark.parametrize("name", list(PUBLIC))
def test_exported_names(name):
    module = importlib.import_module(name)
    assert public_names(module) == set(PUBLIC[name].split())
    assert module.__doc__
    for exported in public_names(module):
        value = getattr(module, exported)
        assert not callable(value) or value.__doc__, f"{name}.{exported} has no docstring"


def test_importing_the_package_does_no_work():
    code = "import sys, tfdet; print('tensorflow' in sys.modules, 'numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


def test_the_version_is_that_of_the_package():
    setup = Path(__file__).resolve().parents[1] / "setup.py"
    assert f'version="{tfdet.__version__}"' in setup.read_text(encoding="utf-8")


def test_conversion_needs_no_tensorflow():
    """Its worker processes start at once, because none of them imports TensorFlow."""
    code = "import sys; import tfdet.data.convert, tfdet.data.synthetic; print('tensorflow' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False"]
