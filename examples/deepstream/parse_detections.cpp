// Reads what an exported model found, for DeepStream's nvinfer; how to build it: docs/guides/deploy/deepstream.md.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "nvdsinfer_custom_impl.h"

namespace {

const NvDsInferLayerInfo* layer_named(const std::vector<NvDsInferLayerInfo>& layers, const char* name) {
    const auto found = std::find_if(layers.begin(), layers.end(), [name](const NvDsInferLayerInfo& layer) {
        return std::strcmp(layer.layerName, name) == 0;
    });
    return found == layers.end() ? nullptr : &*found;
}

}  // namespace

extern "C" bool NvDsInferParseDetections(const std::vector<NvDsInferLayerInfo>& layers,
                                         const NvDsInferNetworkInfo& network,
                                         const NvDsInferParseDetectionParams& parameters,
                                         std::vector<NvDsInferParseObjectInfo>& objects) {
    const NvDsInferLayerInfo* scores = layer_named(layers, "scores");
    const NvDsInferLayerInfo* labels = layer_named(layers, "labels");
    const NvDsInferLayerInfo* boxes = layer_named(layers, "boxes");
    if (!scores || !labels || !boxes || scores->dataType != FLOAT || boxes->dataType != FLOAT) return false;
    const float* score = static_cast<const float*>(scores->buffer);
    const float* box = static_cast<const float*>(boxes->buffer);
    std::vector<const float*> seen;
    for (unsigned int i = 0; i < scores->inferDims.numElements; ++i, box += 4) {
        // TensorRT before version 10 has no 64-bit integers.
        const std::int64_t label = labels->dataType == INT32 ? static_cast<const std::int32_t*>(labels->buffer)[i]
                                                             : static_cast<const std::int64_t*>(labels->buffer)[i];
        if (label < 0 || label >= parameters.numClassesConfigured) return false;
        if (score[i] < parameters.perClassPreclusterThreshold[label]) continue;
        // A query may be listed with several labels, always with the same box; the first is the best.
        const auto is_same = [box](const float* other) { return std::equal(box, box + 4, other); };
        if (std::any_of(seen.begin(), seen.end(), is_same)) continue;
        seen.push_back(box);
        const float left = std::clamp(box[0], 0.0f, 1.0f) * network.width;
        const float top = std::clamp(box[1], 0.0f, 1.0f) * network.height;
        const float right = std::clamp(box[2], 0.0f, 1.0f) * network.width;
        const float bottom = std::clamp(box[3], 0.0f, 1.0f) * network.height;
        NvDsInferParseObjectInfo object{};
        object.classId = static_cast<unsigned int>(label);
        object.detectionConfidence = score[i];
        object.left = left;
        object.top = top;
        object.width = right - left;
        object.height = bottom - top;
        objects.push_back(object);
    }
    return true;
}

CHECK_CUSTOM_PARSE_FUNC_PROTOTYPE(NvDsInferParseDetections);
