; made of launcher.c (sha256 9d167d24d18d3dec9bf2c9da1f7c1d848f68ff5445a76c26cd23da34ad54b0a4) by scripts/make_launcher
%struct.__sigset_t = type { [16 x i64] }
%struct.ParallelGroup = type { ptr, i32 }
%struct.Worker = type { i32, i32, i32, i32, ptr, ptr, i64, %union.sem_t, [56 x i8] }
%union.sem_t = type { i64, [24 x i8] }
%struct.Dl_info = type { ptr, ptr, ptr, ptr }
%struct.timespec = type { i64, i64 }

@convtvm_launcher = local_unnamed_addr global { ptr, i32, [4 x i8] } { ptr @launch_shared, i32 0, [4 x i8] zeroinitializer }, align 8
@__TVMBackendParallelLaunch = hidden local_unnamed_addr global ptr @launch, align 8
@__const.launch_shared.alone = private unnamed_addr constant { ptr, i32, [4 x i8] } { ptr null, i32 1, [4 x i8] zeroinitializer }, align 8
@current = internal global ptr null, align 8
@.str = private unnamed_addr constant [8 x i8] c"convtvm\00", align 1
@.str.1 = private unnamed_addr constant [16 x i8] c"CONVTVM_SPIN_US\00", align 1
@convtvm_threads = external local_unnamed_addr constant i32, align 4

define internal i32 @launch_shared(i32 noundef %0, ptr noundef %1, ptr noundef %2) {
  %4 = alloca [64 x i64], align 16
  %5 = alloca %struct.__sigset_t, align 8
  %6 = alloca %struct.__sigset_t, align 8
  %7 = alloca [64 x i64], align 16
  %8 = alloca %struct.ParallelGroup, align 8
  %9 = icmp sgt i32 %0, 1
  br i1 %9, label %10, label %267

10:                                               ; preds = %3
  %11 = load atomic i64, ptr @current acquire, align 8
  %12 = inttoptr i64 %11 to ptr
  %13 = icmp eq i64 %11, 0
  br i1 %13, label %21, label %14

14:                                               ; preds = %10
  %15 = getelementptr inbounds nuw i8, ptr %12, i64 16
  %16 = load i32, ptr %15, align 16
  %17 = icmp eq i32 %16, 0
  br i1 %17, label %41, label %18

18:                                               ; preds = %14
  %19 = tail call i32 @getpid()
  %20 = icmp eq i32 %16, %19
  br i1 %20, label %41, label %21

21:                                               ; preds = %18, %10
  %22 = tail call ptr @mmap(ptr noundef null, i64 noundef 131584, i32 noundef 3, i32 noundef 34, i32 noundef -1, i64 noundef 0)
  %23 = icmp eq ptr %22, inttoptr (i64 -1 to ptr)
  br i1 %23, label %267, label %24

24:                                               ; preds = %21
  %25 = tail call i32 @madvise(ptr noundef %22, i64 noundef 131584, i32 noundef 18)
  %26 = icmp eq i32 %25, 0
  br i1 %26, label %30, label %27

27:                                               ; preds = %24
  %28 = tail call i32 @getpid()
  %29 = getelementptr inbounds nuw i8, ptr %22, i64 16
  store i32 %28, ptr %29, align 16
  br label %30

30:                                               ; preds = %27, %24
  %31 = ptrtoint ptr %22 to i64
  %32 = cmpxchg ptr @current, i64 %11, i64 %31 seq_cst seq_cst, align 8
  %33 = extractvalue { i64, i1 } %32, 1
  br i1 %33, label %38, label %34

34:                                               ; preds = %30
  %35 = extractvalue { i64, i1 } %32, 0
  %36 = inttoptr i64 %35 to ptr
  %37 = tail call i32 @munmap(ptr noundef %22, i64 noundef 131584)
  br label %38

38:                                               ; preds = %34, %30
  %39 = phi ptr [ %36, %34 ], [ %22, %30 ]
  %40 = icmp eq ptr %39, null
  br i1 %40, label %267, label %41

41:                                               ; preds = %14, %18, %38
  %42 = phi ptr [ %39, %38 ], [ %12, %18 ], [ %12, %14 ]
  %43 = load atomic i32, ptr %42 monotonic, align 128
  %44 = icmp eq i32 %43, 0
  br i1 %44, label %45, label %267

45:                                               ; preds = %41
  %46 = atomicrmw xchg ptr %42, i32 1 acquire, align 128
  %47 = icmp eq i32 %46, 0
  br i1 %47, label %48, label %267

48:                                               ; preds = %45
  %49 = call i32 @sched_getaffinity(i32 noundef 0, i64 noundef 512, ptr noundef nonnull %7)
  %50 = icmp eq i32 %49, 0
  br i1 %50, label %52, label %51

51:                                               ; preds = %48
  br label %265

52:                                               ; preds = %48
  %53 = getelementptr inbounds nuw i8, ptr %42, i64 32
  %54 = call i32 @bcmp(ptr noundef nonnull dereferenceable(512) %7, ptr noundef nonnull dereferenceable(512) %53, i64 512)
  %55 = icmp eq i32 %54, 0
  br i1 %55, label %56, label %59

56:                                               ; preds = %52
  %57 = getelementptr inbounds nuw i8, ptr %42, i64 4
  %58 = load i32, ptr %57, align 4
  br label %88

59:                                               ; preds = %52
  call void @llvm.memcpy.p0.p0.i64(ptr noundef nonnull align 32 dereferenceable(512) %53, ptr noundef nonnull align 16 dereferenceable(512) %7, i64 512, i1 false)
  br label %67

60:                                               ; preds = %67
  %61 = getelementptr inbounds nuw i8, ptr %42, i64 8
  store i32 %74, ptr %61, align 8
  %62 = getelementptr inbounds nuw i8, ptr %42, i64 4
  %63 = load i32, ptr %62, align 4
  %64 = icmp sgt i32 %63, 0
  br i1 %64, label %65, label %88

65:                                               ; preds = %60
  %66 = getelementptr inbounds nuw i8, ptr %42, i64 640
  br label %77

67:                                               ; preds = %67, %59
  %68 = phi i64 [ 0, %59 ], [ %75, %67 ]
  %69 = phi i32 [ 0, %59 ], [ %74, %67 ]
  %70 = getelementptr inbounds nuw i64, ptr %7, i64 %68
  %71 = load i64, ptr %70, align 8
  %72 = call range(i64 0, 65) i64 @llvm.ctpop.i64(i64 %71)
  %73 = trunc nuw nsw i64 %72 to i32
  %74 = add nuw nsw i32 %69, %73
  %75 = add nuw nsw i64 %68, 1
  %76 = icmp eq i64 %75, 64
  br i1 %76, label %60, label %67

77:                                               ; preds = %77, %65
  %78 = phi i64 [ 0, %65 ], [ %84, %77 ]
  %79 = getelementptr inbounds nuw [1023 x %struct.Worker], ptr %66, i64 0, i64 %78
  %80 = getelementptr inbounds nuw i8, ptr %79, i64 32
  %81 = load i64, ptr %80, align 32
  %82 = call i32 @pthread_setaffinity_np(i64 noundef %81, i64 noundef 512, ptr noundef nonnull %7)
  %83 = getelementptr inbounds nuw i8, ptr %79, i64 12
  store i32 0, ptr %83, align 4
  %84 = add nuw nsw i64 %78, 1
  %85 = load i32, ptr %62, align 4
  %86 = sext i32 %85 to i64
  %87 = icmp slt i64 %84, %86
  br i1 %87, label %77, label %88

88:                                               ; preds = %77, %60, %56
  %89 = phi i32 [ %58, %56 ], [ %63, %60 ], [ %85, %77 ]
  %90 = getelementptr inbounds nuw i8, ptr %42, i64 8
  %91 = load i32, ptr %90, align 8
  %92 = call i32 @llvm.smin.i32(i32 %0, i32 %91)
  %93 = call i32 @llvm.smin.i32(i32 %92, i32 1024)
  %94 = getelementptr inbounds nuw i8, ptr %42, i64 4
  %95 = add nsw i32 %89, 1
  %96 = icmp slt i32 %95, %93
  br i1 %96, label %97, label %166

97:                                               ; preds = %88
  %98 = getelementptr inbounds nuw i8, ptr %42, i64 12
  %99 = getelementptr inbounds nuw i8, ptr %42, i64 576
  %100 = getelementptr inbounds nuw i8, ptr %42, i64 24
  %101 = getelementptr inbounds nuw i8, ptr %42, i64 640
  %102 = load i32, ptr %98, align 4
  %103 = icmp eq i32 %102, 0
  br i1 %103, label %111, label %107

104:                                              ; preds = %162
  %105 = load i32, ptr %98, align 4
  %106 = icmp eq i32 %105, 0
  br i1 %106, label %111, label %107

107:                                              ; preds = %104, %97
  %108 = phi i32 [ %95, %97 ], [ %164, %104 ]
  %109 = phi i32 [ %102, %97 ], [ %105, %104 ]
  %110 = add nsw i32 %109, -1
  store i32 %110, ptr %98, align 4
  br label %166

111:                                              ; preds = %97, %104
  %112 = phi i32 [ %163, %104 ], [ %89, %97 ]
  %113 = icmp eq i32 %112, 0
  br i1 %113, label %114, label %134

114:                                              ; preds = %111
  %115 = call i32 @stays()
  %116 = icmp eq i32 %115, 0
  br i1 %116, label %160, label %117

117:                                              ; preds = %114
  %118 = call i32 @sem_init(ptr noundef nonnull %99, i32 noundef 0, i32 noundef 0)
  %119 = icmp eq i32 %118, 0
  br i1 %119, label %120, label %160

120:                                              ; preds = %117
  %121 = call ptr @getenv(ptr noundef nonnull @.str.1)
  %122 = icmp eq ptr %121, null
  br i1 %122, label %128, label %123

123:                                              ; preds = %120
  %124 = load i8, ptr %121, align 1
  %125 = icmp eq i8 %124, 0
  br i1 %125, label %128, label %126

126:                                              ; preds = %123
  %127 = call i64 @atoll(ptr noundef nonnull %121)
  br label %128

128:                                              ; preds = %126, %123, %120
  %129 = phi i64 [ %127, %126 ], [ 200, %123 ], [ 200, %120 ]
  %130 = call i64 @llvm.smin.i64(i64 %129, i64 1000000)
  %131 = call i64 @llvm.smax.i64(i64 %130, i64 0)
  %132 = mul nuw nsw i64 %131, 1000
  store i64 %132, ptr %100, align 8
  %133 = load i32, ptr %94, align 4
  br label %134

134:                                              ; preds = %128, %111
  %135 = phi i32 [ %133, %128 ], [ %112, %111 ]
  %136 = sext i32 %135 to i64
  %137 = getelementptr inbounds [1023 x %struct.Worker], ptr %101, i64 0, i64 %136
  call void @llvm.memset.p0.i64(ptr noundef nonnull align 128 dereferenceable(128) %137, i8 0, i64 128, i1 false)
  %138 = getelementptr inbounds nuw i8, ptr %137, i64 24
  store ptr %42, ptr %138, align 8
  %139 = load i32, ptr %94, align 4
  %140 = add nsw i32 %139, 1
  %141 = getelementptr inbounds nuw i8, ptr %137, i64 4
  store i32 %140, ptr %141, align 4
  %142 = getelementptr inbounds nuw i8, ptr %137, i64 40
  %143 = call i32 @sem_init(ptr noundef nonnull %142, i32 noundef 0, i32 noundef 0)
  %144 = icmp eq i32 %143, 0
  br i1 %144, label %145, label %160

145:                                              ; preds = %134
  %146 = call i32 @sigfillset(ptr noundef nonnull %5)
  %147 = call i32 @pthread_sigmask(i32 noundef 2, ptr noundef nonnull %5, ptr noundef nonnull %6)
  %148 = getelementptr inbounds nuw i8, ptr %137, i64 32
  %149 = call i32 @pthread_create(ptr noundef nonnull %148, ptr noundef null, ptr noundef nonnull @work, ptr noundef nonnull %137)
  %150 = call i32 @pthread_sigmask(i32 noundef 2, ptr noundef nonnull %6, ptr noundef null)
  %151 = icmp eq i32 %149, 0
  br i1 %151, label %153, label %152

152:                                              ; preds = %145
  br label %160

153:                                              ; preds = %145
  %154 = load i64, ptr %148, align 32
  %155 = call i32 @pthread_setname_np(i64 noundef %154, ptr noundef nonnull @.str)
  %156 = load i64, ptr %148, align 32
  %157 = call i32 @pthread_detach(i64 noundef %156)
  %158 = load i32, ptr %94, align 4
  %159 = add nsw i32 %158, 1
  store i32 %159, ptr %94, align 4
  br label %162

160:                                              ; preds = %152, %134, %117, %114
  store i32 1000, ptr %98, align 4
  %161 = load i32, ptr %94, align 4
  br label %162

162:                                              ; preds = %160, %153
  %163 = phi i32 [ %159, %153 ], [ %161, %160 ]
  %164 = add nsw i32 %163, 1
  %165 = icmp slt i32 %164, %93
  br i1 %165, label %104, label %166

166:                                              ; preds = %162, %88, %107
  %167 = phi i32 [ %108, %107 ], [ %95, %88 ], [ %164, %162 ]
  %168 = call i32 @llvm.smin.i32(i32 %167, i32 %93)
  %169 = icmp sgt i32 %168, 1
  br i1 %169, label %170, label %265

170:                                              ; preds = %166
  %171 = getelementptr inbounds nuw i8, ptr %42, i64 640
  %172 = getelementptr inbounds nuw i8, ptr %42, i64 544
  store ptr %1, ptr %172, align 32
  %173 = getelementptr inbounds nuw i8, ptr %42, i64 552
  store ptr %2, ptr %173, align 8
  %174 = getelementptr inbounds nuw i8, ptr %42, i64 568
  store i32 %168, ptr %174, align 8
  %175 = add nsw i32 %168, -1
  %176 = zext nneg i32 %175 to i64
  br label %182

177:                                              ; preds = %212
  %178 = getelementptr inbounds nuw i8, ptr %42, i64 560
  %179 = call i32 %1(i32 noundef 0, ptr noundef nonnull %178, ptr noundef %2)
  %180 = add nsw i32 %168, -2
  %181 = zext nneg i32 %180 to i64
  br label %219

182:                                              ; preds = %212, %170
  %183 = phi i64 [ 0, %170 ], [ %213, %212 ]
  %184 = getelementptr inbounds nuw %struct.Worker, ptr %171, i64 %183
  %185 = getelementptr inbounds nuw i8, ptr %184, i64 8
  store i32 0, ptr %185, align 8
  %186 = atomicrmw xchg ptr %184, i32 2 seq_cst, align 128
  %187 = icmp eq i32 %186, 1
  br i1 %187, label %188, label %212

188:                                              ; preds = %182
  %189 = call i32 @sched_getcpu()
  %190 = icmp ult i32 %189, 4096
  br i1 %190, label %191, label %209

191:                                              ; preds = %188
  %192 = getelementptr inbounds nuw i8, ptr %184, i64 12
  %193 = load i32, ptr %192, align 4
  %194 = add nuw nsw i32 %189, 1
  %195 = icmp eq i32 %193, %194
  br i1 %195, label %209, label %196

196:                                              ; preds = %191
  call void @llvm.memcpy.p0.p0.i64(ptr noundef nonnull align 16 dereferenceable(512) %4, ptr noundef nonnull readonly align 32 dereferenceable(512) %53, i64 512, i1 false)
  %197 = and i32 %189, 63
  %198 = zext nneg i32 %197 to i64
  %199 = shl nuw i64 1, %198
  %200 = xor i64 %199, -1
  %201 = lshr i32 %189, 6
  %202 = zext nneg i32 %201 to i64
  %203 = getelementptr inbounds nuw [64 x i64], ptr %4, i64 0, i64 %202
  %204 = load i64, ptr %203, align 8
  %205 = and i64 %204, %200
  store i64 %205, ptr %203, align 8
  %206 = getelementptr inbounds nuw i8, ptr %184, i64 32
  %207 = load i64, ptr %206, align 32
  %208 = call i32 @pthread_setaffinity_np(i64 noundef %207, i64 noundef 512, ptr noundef nonnull %4)
  store i32 %194, ptr %192, align 4
  br label %209

209:                                              ; preds = %196, %191, %188
  %210 = getelementptr inbounds nuw i8, ptr %184, i64 40
  %211 = call i32 @sem_post(ptr noundef nonnull %210)
  br label %212

212:                                              ; preds = %209, %182
  %213 = add nuw nsw i64 %183, 1
  %214 = icmp eq i64 %213, %176
  br i1 %214, label %177, label %182

215:                                              ; preds = %230
  %216 = getelementptr inbounds nuw i8, ptr %42, i64 24
  %217 = getelementptr inbounds nuw i8, ptr %42, i64 576
  %218 = icmp ne ptr @TVMFFIErrorSetRaised, null
  br label %234

219:                                              ; preds = %230, %177
  %220 = phi i64 [ %181, %177 ], [ %232, %230 ]
  %221 = phi i32 [ %179, %177 ], [ %231, %230 ]
  %222 = getelementptr inbounds nuw %struct.Worker, ptr %171, i64 %220
  %223 = cmpxchg ptr %222, i32 2, i32 0 seq_cst seq_cst, align 4
  %224 = extractvalue { i32, i1 } %223, 1
  br i1 %224, label %225, label %230

225:                                              ; preds = %219
  %226 = trunc i64 %220 to i32
  %227 = add i32 %226, 1
  %228 = call i32 %1(i32 noundef %227, ptr noundef nonnull %178, ptr noundef %2)
  %229 = or i32 %228, %221
  br label %230

230:                                              ; preds = %225, %219
  %231 = phi i32 [ %229, %225 ], [ %221, %219 ]
  %232 = add nsw i64 %220, -1
  %233 = icmp sgt i64 %220, 0
  br i1 %233, label %219, label %215

234:                                              ; preds = %260, %215
  %235 = phi i64 [ 0, %215 ], [ %263, %260 ]
  %236 = phi i32 [ %231, %215 ], [ %262, %260 ]
  %237 = getelementptr inbounds nuw %struct.Worker, ptr %171, i64 %235
  %238 = load i64, ptr %216, align 8
  %239 = call fastcc i32 @left(ptr noundef nonnull %237, i32 noundef 3, i64 noundef %238)
  %240 = icmp eq i32 %239, 0
  br i1 %240, label %241, label %247

241:                                              ; preds = %234
  %242 = cmpxchg ptr %237, i32 3, i32 4 seq_cst seq_cst, align 4
  %243 = extractvalue { i32, i1 } %242, 1
  br i1 %243, label %244, label %247

244:                                              ; preds = %241, %244
  %245 = call i32 @sem_wait(ptr noundef nonnull %217)
  %246 = icmp eq i32 %245, 0
  br i1 %246, label %247, label %244

247:                                              ; preds = %244, %241, %234
  %248 = getelementptr inbounds nuw i8, ptr %237, i64 8
  %249 = load i32, ptr %248, align 8
  %250 = icmp eq i32 %249, 0
  br i1 %250, label %260, label %251

251:                                              ; preds = %247
  %252 = getelementptr inbounds nuw i8, ptr %237, i64 16
  %253 = load ptr, ptr %252, align 16
  %254 = icmp ne ptr %253, null
  %255 = and i1 %218, %254
  br i1 %255, label %256, label %258

256:                                              ; preds = %251
  call void @TVMFFIErrorSetRaised(ptr noundef nonnull %253)
  %257 = load i32, ptr %248, align 8
  br label %258

258:                                              ; preds = %256, %251
  %259 = phi i32 [ %257, %256 ], [ %249, %251 ]
  store ptr null, ptr %252, align 16
  br label %260

260:                                              ; preds = %258, %247
  %261 = phi i32 [ %259, %258 ], [ 0, %247 ]
  %262 = or i32 %261, %236
  %263 = add nuw nsw i64 %235, 1
  %264 = icmp eq i64 %263, %176
  br i1 %264, label %266, label %234

265:                                              ; preds = %166, %51
  store atomic i32 0, ptr %42 release, align 128
  br label %267

266:                                              ; preds = %260
  store atomic i32 0, ptr %42 release, align 128
  br label %269

267:                                              ; preds = %21, %3, %38, %45, %41, %265
  call void @llvm.memcpy.p0.p0.i64(ptr noundef nonnull align 8 dereferenceable(16) %8, ptr noundef nonnull align 8 dereferenceable(16) @__const.launch_shared.alone, i64 16, i1 false)
  %268 = call i32 %1(i32 noundef 0, ptr noundef nonnull %8, ptr noundef %2)
  br label %269

269:                                              ; preds = %266, %267
  %270 = phi i32 [ %268, %267 ], [ %262, %266 ]
  ret i32 %270
}

define internal i32 @launch(ptr noundef %0, ptr noundef %1, i32 noundef %2) {
  %4 = load i32, ptr getelementptr inbounds nuw (i8, ptr @convtvm_launcher, i64 8), align 8
  %5 = icmp eq i32 %4, 0
  %6 = load i32, ptr @convtvm_threads, align 4
  %7 = select i1 %5, i32 %6, i32 %4
  %8 = load ptr, ptr @convtvm_launcher, align 8
  %9 = icmp sgt i32 %2, 0
  %10 = select i1 %9, i32 %2, i32 %7
  %11 = tail call i32 %8(i32 noundef %10, ptr noundef %0, ptr noundef %1)
  ret i32 %11
}

declare void @llvm.memcpy.p0.p0.i64(ptr noalias writeonly, ptr noalias readonly, i64, i1 immarg)

declare i32 @getpid() local_unnamed_addr

declare ptr @mmap(ptr noundef, i64 noundef, i32 noundef, i32 noundef, i32 noundef, i64 noundef) local_unnamed_addr

declare i32 @madvise(ptr noundef, i64 noundef, i32 noundef) local_unnamed_addr

declare i32 @munmap(ptr noundef, i64 noundef) local_unnamed_addr

declare i32 @sched_getaffinity(i32 noundef, i64 noundef, ptr noundef) local_unnamed_addr

declare i64 @llvm.ctpop.i64(i64)

declare i32 @pthread_setaffinity_np(i64 noundef, i64 noundef, ptr noundef) local_unnamed_addr

define internal range(i32 0, 2) i32 @stays() {
  %1 = alloca %struct.Dl_info, align 8
  %2 = call i32 @dladdr(ptr noundef nonnull @stays, ptr noundef nonnull %1)
  %3 = icmp eq i32 %2, 0
  br i1 %3, label %9, label %4

4:                                                ; preds = %0
  %5 = load ptr, ptr %1, align 8
  %6 = call ptr @dlopen(ptr noundef %5, i32 noundef 4102)
  %7 = icmp ne ptr %6, null
  %8 = zext i1 %7 to i32
  br label %9

9:                                                ; preds = %0, %4
  %10 = phi i32 [ %8, %4 ], [ 0, %0 ]
  ret i32 %10
}

declare i32 @sem_init(ptr noundef, i32 noundef, i32 noundef) local_unnamed_addr

declare void @llvm.memset.p0.i64(ptr writeonly, i8, i64, i1 immarg)

declare i32 @sigfillset(ptr noundef) local_unnamed_addr

declare i32 @pthread_sigmask(i32 noundef, ptr noundef, ptr noundef) local_unnamed_addr

declare i32 @pthread_create(ptr noundef, ptr noundef, ptr noundef, ptr noundef) local_unnamed_addr

define internal noundef ptr @work(ptr noundef %0) {
  %2 = getelementptr inbounds nuw i8, ptr %0, i64 24
  %3 = load ptr, ptr %2, align 8
  %4 = getelementptr inbounds nuw i8, ptr %3, i64 24
  %5 = getelementptr inbounds nuw i8, ptr %0, i64 40
  %6 = getelementptr inbounds nuw i8, ptr %3, i64 544
  %7 = getelementptr inbounds nuw i8, ptr %0, i64 4
  %8 = getelementptr inbounds nuw i8, ptr %3, i64 560
  %9 = getelementptr inbounds nuw i8, ptr %3, i64 552
  %10 = getelementptr inbounds nuw i8, ptr %0, i64 8
  %11 = icmp ne ptr @TVMFFIErrorMoveFromRaised, null
  %12 = getelementptr inbounds nuw i8, ptr %0, i64 16
  %13 = getelementptr inbounds nuw i8, ptr %3, i64 576
  br label %14

14:                                               ; preds = %42, %1
  %15 = load i64, ptr %4, align 8
  %16 = tail call fastcc i32 @left(ptr noundef %0, i32 noundef 0, i64 noundef %15)
  %17 = icmp eq i32 %16, 0
  br i1 %17, label %18, label %28

18:                                               ; preds = %14
  %19 = cmpxchg ptr %0, i32 0, i32 1 seq_cst seq_cst, align 4
  %20 = extractvalue { i32, i1 } %19, 1
  br i1 %20, label %21, label %28

21:                                               ; preds = %18
  %22 = load atomic i32, ptr %0 seq_cst, align 128
  %23 = icmp eq i32 %22, 1
  br i1 %23, label %24, label %28

24:                                               ; preds = %21, %24
  %25 = tail call i32 @sem_wait(ptr noundef nonnull %5)
  %26 = load atomic i32, ptr %0 seq_cst, align 128
  %27 = icmp eq i32 %26, 1
  br i1 %27, label %24, label %28

28:                                               ; preds = %24, %21, %18, %14
  %29 = cmpxchg ptr %0, i32 2, i32 3 seq_cst seq_cst, align 4
  %30 = extractvalue { i32, i1 } %29, 1
  br i1 %30, label %31, label %42

31:                                               ; preds = %28
  %32 = load ptr, ptr %6, align 32
  %33 = load i32, ptr %7, align 4
  %34 = load ptr, ptr %9, align 8
  %35 = tail call i32 %32(i32 noundef %33, ptr noundef nonnull %8, ptr noundef %34)
  store i32 %35, ptr %10, align 8
  %36 = icmp ne i32 %35, 0
  %37 = and i1 %11, %36
  br i1 %37, label %38, label %39

38:                                               ; preds = %31
  tail call void @TVMFFIErrorMoveFromRaised(ptr noundef nonnull %12)
  br label %39

39:                                               ; preds = %38, %31
  %40 = atomicrmw xchg ptr %0, i32 0 seq_cst, align 128
  %41 = icmp eq i32 %40, 4
  br i1 %41, label %43, label %42

42:                                               ; preds = %39, %43, %28
  br label %14

43:                                               ; preds = %39
  %44 = tail call i32 @sem_post(ptr noundef nonnull %13)
  br label %42
}

declare i32 @pthread_setname_np(i64 noundef, ptr noundef) local_unnamed_addr

declare i32 @pthread_detach(i64 noundef) local_unnamed_addr

declare i32 @dladdr(ptr noundef, ptr noundef) local_unnamed_addr

declare ptr @dlopen(ptr noundef, i32 noundef) local_unnamed_addr

declare noundef ptr @getenv(ptr noundef) local_unnamed_addr

declare i64 @atoll(ptr noundef) local_unnamed_addr

define internal fastcc range(i32 0, 2) i32 @left(ptr noundef readonly %0, i32 noundef range(i32 0, 4) %1, i64 noundef %2) unnamed_addr {
  %4 = alloca %struct.timespec, align 8
  %5 = getelementptr inbounds nuw i8, ptr %4, i64 8
  br label %6

6:                                                ; preds = %15, %3
  %7 = phi i64 [ 0, %3 ], [ %23, %15 ]
  br label %8

8:                                                ; preds = %6, %12
  %9 = phi i32 [ 0, %6 ], [ %13, %12 ]
  %10 = load atomic i32, ptr %0 acquire, align 4
  %11 = icmp eq i32 %10, %1
  br i1 %11, label %12, label %25

12:                                               ; preds = %8
  call void @convtvm_relax()
  %13 = add nuw nsw i32 %9, 1
  %14 = icmp eq i32 %13, 32
  br i1 %14, label %15, label %8

15:                                               ; preds = %12
  %16 = call i32 @clock_gettime(i32 noundef 1, ptr noundef nonnull %4)
  %17 = load i64, ptr %4, align 8
  %18 = mul nsw i64 %17, 1000000000
  %19 = load i64, ptr %5, align 8
  %20 = add nsw i64 %18, %19
  %21 = icmp eq i64 %7, 0
  %22 = add nsw i64 %20, %2
  %23 = select i1 %21, i64 %22, i64 %7
  %24 = icmp slt i64 %20, %23
  br i1 %24, label %6, label %25

25:                                               ; preds = %15, %8
  %26 = phi i32 [ 1, %8 ], [ 0, %15 ]
  ret i32 %26
}

declare i32 @sem_wait(ptr noundef) local_unnamed_addr

declare extern_weak void @TVMFFIErrorMoveFromRaised(ptr noundef)

declare i32 @sem_post(ptr noundef) local_unnamed_addr

declare void @convtvm_relax() local_unnamed_addr

declare i32 @clock_gettime(i32 noundef, ptr noundef) local_unnamed_addr

declare i32 @sched_getcpu() local_unnamed_addr

declare extern_weak void @TVMFFIErrorSetRaised(ptr noundef)

declare i32 @bcmp(ptr, ptr, i64) local_unnamed_addr

declare i32 @llvm.smin.i32(i32, i32)

declare i64 @llvm.smin.i64(i64, i64)

declare i64 @llvm.smax.i64(i64, i64)
