// Detect objects in a picture with an exported model: detect MODEL.onnx PICTURE [CONFIDENCE]
//
// Prints one line per object: confidence, left, top, right and bottom in pixels, class name.
// ONNX Runtime runs the network, OpenCV reads and resizes the picture; how to compile: docs/guides/deploy/cpp.md.

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>
#include <onnxruntime_cxx_api.h>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>

struct Metadata {
    std::vector<std::string> names;
    cv::Size size;  // of the network's input
    bool letterbox;
};

struct Detection {
    float confidence;
    std::int64_t label;
    std::array<float, 4> box;  // left, top, right, bottom in [0, 1] of the network's input
};

// The rectangle of the network's input that shows an image: all of it, or with a letterbox its middle.
cv::Rect content_of(cv::Size image, cv::Size input, bool letterbox) {
    cv::Size content = input;
    if (letterbox) {
        const std::int64_t tall = std::int64_t{image.height} * input.width;
        const std::int64_t wide = std::int64_t{image.width} * input.height;
        if (tall > wide)  // whole numbers, rounded half up
            content.width = std::max<int>((2 * wide + image.height) / (2 * image.height), 1);
        else
            content.height = std::max<int>((2 * tall + image.width) / (2 * image.width), 1);
    }
    return {(input.width - content.width) / 2, (input.height - content.height) / 2, content.width, content.height};
}

// Sides that shrink are averaged, so that thin objects survive; sides that grow are interpolated.
cv::Mat resize(const cv::Mat& image, cv::Size size) {
    cv::Mat resized = image;
    const cv::Size small(std::min(image.cols, size.width), std::min(image.rows, size.height));
    if (small != resized.size()) cv::resize(resized, resized, small, 0, 0, cv::INTER_AREA);
    if (size != resized.size()) cv::resize(resized, resized, size, 0, 0, cv::INTER_LINEAR);
    return resized;
}

// An image in BGR as the network's input: 3×H×W, RGB in [0, 1], black where no image is.
void preprocess(const cv::Mat& image, cv::Rect content, cv::Size input, float* values) {
    const cv::Mat resized = resize(image, content.size());
    for (int y = 0; y < resized.rows; ++y)
        for (int x = 0; x < resized.cols; ++x)
            for (int channel = 0; channel < 3; ++channel)
                values[(channel * input.height + content.y + y) * input.width + content.x + x] =
                    resized.at<cv::Vec3b>(y, x)[2 - channel] / 255.0f;
}

float iou(const std::array<float, 4>& a, const std::array<float, 4>& b) {
    const float width = std::min(a[2], b[2]) - std::max(a[0], b[0]);
    const float height = std::min(a[3], b[3]) - std::max(a[1], b[1]);
    const float both = std::max(width, 0.0f) * std::max(height, 0.0f);
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both);
}

// Each object once: of equal boxes the first, which is the better label, then of boxes of one class that are nearly
// the same the first.
std::vector<Detection> without_duplicates(const std::vector<Detection>& found) {
    std::vector<Detection> queries, objects;
    for (const Detection& one : found) {
        const auto is_same = [&one](const Detection& better) { return better.box == one.box; };
        if (std::none_of(queries.begin(), queries.end(), is_same)) queries.push_back(one);
    }
    for (const Detection& one : queries) {
        const auto is_same = [&one](const Detection& better) {
            return better.label == one.label && iou(better.box, one.box) >= 0.9f;
        };
        if (std::none_of(objects.begin(), objects.end(), is_same)) objects.push_back(one);
    }
    return objects;
}

class Detector {
public:
    explicit Detector(const std::filesystem::path& path)
        : environment_(ORT_LOGGING_LEVEL_ERROR), session_(environment_, path.c_str(), Ort::SessionOptions()) {
        Ort::AllocatorWithDefaultOptions allocator;
        const auto text = session_.GetModelMetadata().LookupCustomMetadataMapAllocated("rtdetrv4", allocator);
        if (!text) throw std::runtime_error(path.string() + " was not exported by rtdetrv4");
        const auto metadata = nlohmann::json::parse(text.get());
        const auto input = session_.GetInputTypeInfo(0);
        if (metadata.at("outputs") != "postprocessed" || metadata.at("channels") != "RGB" ||
            metadata.at("scale") != "1/255" ||
            input.GetTensorTypeAndShapeInfo().GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
            throw std::runtime_error(path.string() + " is not for this program; export it without --raw and --frames");
        const auto& size = metadata.at("image_size");
        metadata_ = {metadata.at("names"), {size.at(1), size.at(0)}, metadata.at("resize") == "letterbox"};
        shape_ = input.GetTensorTypeAndShapeInfo().GetShape();
        shape_[0] = std::max<std::int64_t>(shape_[0], 1);  // -1: any batch size
        input_name_ = session_.GetInputNameAllocated(0, allocator).get();
    }

    const std::vector<std::string>& names() const { return metadata_.names; }

    // Objects in an image in BGR, by descending confidence; their boxes in pixels.
    std::vector<Detection> detect(const cv::Mat& image, float confidence) {
        const cv::Size input = metadata_.size;
        const cv::Rect content = content_of(image.size(), input, metadata_.letterbox);
        std::vector<float> values(shape_[0] * 3 * input.area());
        preprocess(image, content, input, values.data());

        const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
        const auto images =
            Ort::Value::CreateTensor<float>(memory, values.data(), values.size(), shape_.data(), shape_.size());
        const char* inputs[] = {input_name_.c_str()};
        const char* outputs[] = {"scores", "labels", "boxes"};
        const auto results = session_.Run(Ort::RunOptions(), inputs, &images, 1, outputs, 3);
        const float* scores = results[0].GetTensorData<float>();
        const std::int64_t* labels = results[1].GetTensorData<std::int64_t>();
        const float* boxes = results[2].GetTensorData<float>();
        const std::int64_t count = results[0].GetTensorTypeAndShapeInfo().GetShape()[1];

        std::vector<Detection> found;
        for (std::int64_t i = 0; i < count && scores[i] >= confidence; ++i, boxes += 4)
            found.push_back({scores[i], labels[i], {boxes[0], boxes[1], boxes[2], boxes[3]}});

        std::vector<Detection> objects;
        for (Detection one : without_duplicates(found)) {
            bool inside = true;
            for (int side = 0; side < 4; ++side) {
                const bool vertical = side % 2;
                const float shown = vertical ? content.height : content.width;
                const float start = vertical ? content.y : content.x;
                const float whole = vertical ? input.height : input.width;
                const float length = vertical ? image.rows : image.cols;
                const float position = (one.box[side] * whole - start) * length / shown;
                inside &= side < 2 ? position <= length : position >= 0;
                one.box[side] = std::clamp(position, 0.0f, length);
            }
            if (inside) objects.push_back(one);
        }
        return objects;
    }

private:
    Ort::Env environment_;
    Ort::Session session_;
    Metadata metadata_;
    std::vector<std::int64_t> shape_;
    std::string input_name_;
};

int main(int count, char** arguments) try {
    if (count < 3) throw std::invalid_argument("usage: detect MODEL.onnx PICTURE [CONFIDENCE]");
    char* rest = nullptr;
    const float confidence = count > 3 ? std::strtof(arguments[3], &rest) : 0.25f;
    if (rest && (rest == arguments[3] || *rest)) throw std::invalid_argument("CONFIDENCE: expected a number from 0 to 1");
    Detector detector(arguments[1]);
    const cv::Mat image = cv::imread(arguments[2], cv::IMREAD_COLOR);  // upright, as the photo's EXIF data say
    if (image.empty()) throw std::runtime_error(std::string("cannot read ") + arguments[2]);
    for (const Detection& one : detector.detect(image, confidence))
        std::printf("%.4f %.2f %.2f %.2f %.2f %s\n", one.confidence, one.box[0], one.box[1], one.box[2], one.box[3],
                    detector.names().at(one.label).c_str());
    return EXIT_SUCCESS;
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return EXIT_FAILURE;
}
