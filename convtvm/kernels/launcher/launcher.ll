; made of launcher.c (sha256 9289cf739ce7b5a41e4753f37e19c040ea5a5fc4e2b3272a9196cfe7dc5811ba) by scripts/make_launcher
%struct.__sigset_t = type { [16 x i64] }
%struct.ParallelGroup = type { ptr, i32 }
%struct.Worker = type { i32, i32, i32, ptr, ptr, i64, %union.sem_t, [56 x i8] }
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
  %4 = alloca %struct.__sigset_t, align 8
  %5 = alloca %struct.__sigset_t, align 8
  %6 = alloca [64 x i64], align 16
  %7 = alloca %struct.ParallelGroup, align 8
  %8 = icmp sgt i32 %0, 1
  br i1 %8, label %9, label %244

9:                                                ; preds = %3
  %10 = load atomic i64, ptr @current acquire, align 8
  %11 = inttoptr i64 %10 to ptr
  %12 = icmp eq i64 %10, 0
  br i1 %12, label %20, label %13

13:                                               ; preds = %9
  %14 = getelementptr inbounds nuw i8, ptr %11, i64 16
  %15 = load i32, ptr %14, align 16
  %16 = icmp eq i32 %15, 0
  br i1 %16, label %40, label %17

17:                                               ; preds = %13
  %18 = tail call i32 @getpid()
  %19 = icmp eq i32 %15, %18
  br i1 %19, label %40, label %20

20:                                               ; preds = %17, %9
  %21 = tail call ptr @mmap(ptr noundef null, i64 noundef 131584, i32 noundef 3, i32 noundef 34, i32 noundef -1, i64 noundef 0)
  %22 = icmp eq ptr %21, inttoptr (i64 -1 to ptr)
  br i1 %22, label %244, label %23

23:                                               ; preds = %20
  %24 = tail call i32 @madvise(ptr noundef %21, i64 noundef 131584, i32 noundef 18)
  %25 = icmp eq i32 %24, 0
  br i1 %25, label %29, label %26

26:                                               ; preds = %23
  %27 = tail call i32 @getpid()
  %28 = getelementptr inbounds nuw i8, ptr %21, i64 16
  store i32 %27, ptr %28, align 16
  br label %29

29:                                               ; preds = %26, %23
  %30 = ptrtoint ptr %21 to i64
  %31 = cmpxchg ptr @current, i64 %10, i64 %30 seq_cst seq_cst, align 8
  %32 = extractvalue { i64, i1 } %31, 1
  br i1 %32, label %37, label %33

33:                                               ; preds = %29
  %34 = extractvalue { i64, i1 } %31, 0
  %35 = inttoptr i64 %34 to ptr
  %36 = tail call i32 @munmap(ptr noundef %21, i64 noundef 131584)
  br label %37

37:                                               ; preds = %33, %29
  %38 = phi ptr [ %35, %33 ], [ %21, %29 ]
  %39 = icmp eq ptr %38, null
  br i1 %39, label %244, label %40

40:                                               ; preds = %13, %17, %37
  %41 = phi ptr [ %38, %37 ], [ %11, %17 ], [ %11, %13 ]
  %42 = load atomic i32, ptr %41 monotonic, align 128
  %43 = icmp eq i32 %42, 0
  br i1 %43, label %44, label %244

44:                                               ; preds = %40
  %45 = atomicrmw xchg ptr %41, i32 1 acquire, align 128
  %46 = icmp eq i32 %45, 0
  br i1 %46, label %47, label %244

47:                                               ; preds = %44
  %48 = call i32 @sched_getaffinity(i32 noundef 0, i64 noundef 512, ptr noundef nonnull %6)
  %49 = icmp eq i32 %48, 0
  br i1 %49, label %51, label %50

50:                                               ; preds = %47
  br label %242

51:                                               ; preds = %47
  %52 = getelementptr inbounds nuw i8, ptr %41, i64 32
  %53 = call i32 @bcmp(ptr noundef nonnull dereferenceable(512) %6, ptr noundef nonnull dereferenceable(512) %52, i64 512)
  %54 = icmp eq i32 %53, 0
  br i1 %54, label %55, label %58

55:                                               ; preds = %51
  %56 = getelementptr inbounds nuw i8, ptr %41, i64 4
  %57 = load i32, ptr %56, align 4
  br label %86

58:                                               ; preds = %51
  call void @llvm.memcpy.p0.p0.i64(ptr noundef nonnull align 32 dereferenceable(512) %52, ptr noundef nonnull align 16 dereferenceable(512) %6, i64 512, i1 false)
  br label %66

59:                                               ; preds = %66
  %60 = getelementptr inbounds nuw i8, ptr %41, i64 8
  store i32 %73, ptr %60, align 8
  %61 = getelementptr inbounds nuw i8, ptr %41, i64 4
  %62 = load i32, ptr %61, align 4
  %63 = icmp sgt i32 %62, 0
  br i1 %63, label %64, label %86

64:                                               ; preds = %59
  %65 = getelementptr i8, ptr %41, i64 672
  br label %76

66:                                               ; preds = %66, %58
  %67 = phi i64 [ 0, %58 ], [ %74, %66 ]
  %68 = phi i32 [ 0, %58 ], [ %73, %66 ]
  %69 = getelementptr inbounds nuw i64, ptr %6, i64 %67
  %70 = load i64, ptr %69, align 8
  %71 = call range(i64 0, 65) i64 @llvm.ctpop.i64(i64 %70)
  %72 = trunc nuw nsw i64 %71 to i32
  %73 = add nuw nsw i32 %68, %72
  %74 = add nuw nsw i64 %67, 1
  %75 = icmp eq i64 %74, 64
  br i1 %75, label %59, label %66

76:                                               ; preds = %76, %64
  %77 = phi i64 [ 0, %64 ], [ %82, %76 ]
  %78 = shl nuw nsw i64 %77, 7
  %79 = getelementptr i8, ptr %65, i64 %78
  %80 = load i64, ptr %79, align 32
  %81 = call i32 @pthread_setaffinity_np(i64 noundef %80, i64 noundef 512, ptr noundef nonnull %6)
  %82 = add nuw nsw i64 %77, 1
  %83 = load i32, ptr %61, align 4
  %84 = sext i32 %83 to i64
  %85 = icmp slt i64 %82, %84
  br i1 %85, label %76, label %86

86:                                               ; preds = %76, %59, %55
  %87 = phi i32 [ %57, %55 ], [ %62, %59 ], [ %83, %76 ]
  %88 = getelementptr inbounds nuw i8, ptr %41, i64 8
  %89 = load i32, ptr %88, align 8
  %90 = call i32 @llvm.smin.i32(i32 %0, i32 %89)
  %91 = call i32 @llvm.smin.i32(i32 %90, i32 1024)
  %92 = getelementptr inbounds nuw i8, ptr %41, i64 4
  %93 = add nsw i32 %87, 1
  %94 = icmp slt i32 %93, %91
  br i1 %94, label %95, label %164

95:                                               ; preds = %86
  %96 = getelementptr inbounds nuw i8, ptr %41, i64 12
  %97 = getelementptr inbounds nuw i8, ptr %41, i64 576
  %98 = getelementptr inbounds nuw i8, ptr %41, i64 24
  %99 = getelementptr inbounds nuw i8, ptr %41, i64 640
  %100 = load i32, ptr %96, align 4
  %101 = icmp eq i32 %100, 0
  br i1 %101, label %109, label %105

102:                                              ; preds = %160
  %103 = load i32, ptr %96, align 4
  %104 = icmp eq i32 %103, 0
  br i1 %104, label %109, label %105

105:                                              ; preds = %102, %95
  %106 = phi i32 [ %93, %95 ], [ %162, %102 ]
  %107 = phi i32 [ %100, %95 ], [ %103, %102 ]
  %108 = add nsw i32 %107, -1
  store i32 %108, ptr %96, align 4
  br label %164

109:                                              ; preds = %95, %102
  %110 = phi i32 [ %161, %102 ], [ %87, %95 ]
  %111 = icmp eq i32 %110, 0
  br i1 %111, label %112, label %132

112:                                              ; preds = %109
  %113 = call i32 @stays()
  %114 = icmp eq i32 %113, 0
  br i1 %114, label %158, label %115

115:                                              ; preds = %112
  %116 = call i32 @sem_init(ptr noundef nonnull %97, i32 noundef 0, i32 noundef 0)
  %117 = icmp eq i32 %116, 0
  br i1 %117, label %118, label %158

118:                                              ; preds = %115
  %119 = call ptr @getenv(ptr noundef nonnull @.str.1)
  %120 = icmp eq ptr %119, null
  br i1 %120, label %126, label %121

121:                                              ; preds = %118
  %122 = load i8, ptr %119, align 1
  %123 = icmp eq i8 %122, 0
  br i1 %123, label %126, label %124

124:                                              ; preds = %121
  %125 = call i64 @atoll(ptr noundef nonnull %119)
  br label %126

126:                                              ; preds = %124, %121, %118
  %127 = phi i64 [ %125, %124 ], [ 200, %121 ], [ 200, %118 ]
  %128 = call i64 @llvm.smin.i64(i64 %127, i64 1000000)
  %129 = call i64 @llvm.smax.i64(i64 %128, i64 0)
  %130 = mul nuw nsw i64 %129, 1000
  store i64 %130, ptr %98, align 8
  %131 = load i32, ptr %92, align 4
  br label %132

132:                                              ; preds = %126, %109
  %133 = phi i32 [ %131, %126 ], [ %110, %109 ]
  %134 = sext i32 %133 to i64
  %135 = getelementptr inbounds [1023 x %struct.Worker], ptr %99, i64 0, i64 %134
  call void @llvm.memset.p0.i64(ptr noundef nonnull align 128 dereferenceable(128) %135, i8 0, i64 128, i1 false)
  %136 = getelementptr inbounds nuw i8, ptr %135, i64 24
  store ptr %41, ptr %136, align 8
  %137 = load i32, ptr %92, align 4
  %138 = add nsw i32 %137, 1
  %139 = getelementptr inbounds nuw i8, ptr %135, i64 4
  store i32 %138, ptr %139, align 4
  %140 = getelementptr inbounds nuw i8, ptr %135, i64 40
  %141 = call i32 @sem_init(ptr noundef nonnull %140, i32 noundef 0, i32 noundef 0)
  %142 = icmp eq i32 %141, 0
  br i1 %142, label %143, label %158

143:                                              ; preds = %132
  %144 = call i32 @sigfillset(ptr noundef nonnull %4)
  %145 = call i32 @pthread_sigmask(i32 noundef 2, ptr noundef nonnull %4, ptr noundef nonnull %5)
  %146 = getelementptr inbounds nuw i8, ptr %135, i64 32
  %147 = call i32 @pthread_create(ptr noundef nonnull %146, ptr noundef null, ptr noundef nonnull @work, ptr noundef nonnull %135)
  %148 = call i32 @pthread_sigmask(i32 noundef 2, ptr noundef nonnull %5, ptr noundef null)
  %149 = icmp eq i32 %147, 0
  br i1 %149, label %151, label %150

150:                                              ; preds = %143
  br label %158

151:                                              ; preds = %143
  %152 = load i64, ptr %146, align 32
  %153 = call i32 @pthread_setname_np(i64 noundef %152, ptr noundef nonnull @.str)
  %154 = load i64, ptr %146, align 32
  %155 = call i32 @pthread_detach(i64 noundef %154)
  %156 = load i32, ptr %92, align 4
  %157 = add nsw i32 %156, 1
  store i32 %157, ptr %92, align 4
  br label %160

158:                                              ; preds = %150, %132, %115, %112
  store i32 1000, ptr %96, align 4
  %159 = load i32, ptr %92, align 4
  br label %160

160:                                              ; preds = %158, %151
  %161 = phi i32 [ %157, %151 ], [ %159, %158 ]
  %162 = add nsw i32 %161, 1
  %163 = icmp slt i32 %162, %91
  br i1 %163, label %102, label %164

164:                                              ; preds = %160, %86, %105
  %165 = phi i32 [ %106, %105 ], [ %93, %86 ], [ %162, %160 ]
  %166 = call i32 @llvm.smin.i32(i32 %165, i32 %91)
  %167 = icmp sgt i32 %166, 1
  br i1 %167, label %168, label %242

168:                                              ; preds = %164
  %169 = getelementptr inbounds nuw i8, ptr %41, i64 640
  %170 = getelementptr inbounds nuw i8, ptr %41, i64 544
  store ptr %1, ptr %170, align 32
  %171 = getelementptr inbounds nuw i8, ptr %41, i64 552
  store ptr %2, ptr %171, align 8
  %172 = getelementptr inbounds nuw i8, ptr %41, i64 568
  store i32 %166, ptr %172, align 8
  %173 = add nsw i32 %166, -1
  %174 = zext nneg i32 %173 to i64
  br label %180

175:                                              ; preds = %189
  %176 = getelementptr inbounds nuw i8, ptr %41, i64 560
  %177 = call i32 %1(i32 noundef 0, ptr noundef nonnull %176, ptr noundef %2)
  %178 = add nsw i32 %166, -2
  %179 = zext nneg i32 %178 to i64
  br label %196

180:                                              ; preds = %189, %168
  %181 = phi i64 [ 0, %168 ], [ %190, %189 ]
  %182 = getelementptr inbounds nuw %struct.Worker, ptr %169, i64 %181
  %183 = getelementptr inbounds nuw i8, ptr %182, i64 8
  store i32 0, ptr %183, align 8
  %184 = atomicrmw xchg ptr %182, i32 2 seq_cst, align 128
  %185 = icmp eq i32 %184, 1
  br i1 %185, label %186, label %189

186:                                              ; preds = %180
  %187 = getelementptr inbounds nuw i8, ptr %182, i64 40
  %188 = call i32 @sem_post(ptr noundef nonnull %187)
  br label %189

189:                                              ; preds = %186, %180
  %190 = add nuw nsw i64 %181, 1
  %191 = icmp eq i64 %190, %174
  br i1 %191, label %175, label %180

192:                                              ; preds = %207
  %193 = getelementptr inbounds nuw i8, ptr %41, i64 24
  %194 = getelementptr inbounds nuw i8, ptr %41, i64 576
  %195 = icmp ne ptr @TVMFFIErrorSetRaised, null
  br label %211

196:                                              ; preds = %207, %175
  %197 = phi i64 [ %179, %175 ], [ %209, %207 ]
  %198 = phi i32 [ %177, %175 ], [ %208, %207 ]
  %199 = getelementptr inbounds nuw %struct.Worker, ptr %169, i64 %197
  %200 = cmpxchg ptr %199, i32 2, i32 0 seq_cst seq_cst, align 4
  %201 = extractvalue { i32, i1 } %200, 1
  br i1 %201, label %202, label %207

202:                                              ; preds = %196
  %203 = trunc i64 %197 to i32
  %204 = add i32 %203, 1
  %205 = call i32 %1(i32 noundef %204, ptr noundef nonnull %176, ptr noundef %2)
  %206 = or i32 %205, %198
  br label %207

207:                                              ; preds = %202, %196
  %208 = phi i32 [ %206, %202 ], [ %198, %196 ]
  %209 = add nsw i64 %197, -1
  %210 = icmp sgt i64 %197, 0
  br i1 %210, label %196, label %192

211:                                              ; preds = %237, %192
  %212 = phi i64 [ 0, %192 ], [ %240, %237 ]
  %213 = phi i32 [ %208, %192 ], [ %239, %237 ]
  %214 = getelementptr inbounds nuw %struct.Worker, ptr %169, i64 %212
  %215 = load i64, ptr %193, align 8
  %216 = call fastcc i32 @left(ptr noundef nonnull %214, i32 noundef 3, i64 noundef %215)
  %217 = icmp eq i32 %216, 0
  br i1 %217, label %218, label %224

218:                                              ; preds = %211
  %219 = cmpxchg ptr %214, i32 3, i32 4 seq_cst seq_cst, align 4
  %220 = extractvalue { i32, i1 } %219, 1
  br i1 %220, label %221, label %224

221:                                              ; preds = %218, %221
  %222 = call i32 @sem_wait(ptr noundef nonnull %194)
  %223 = icmp eq i32 %222, 0
  br i1 %223, label %224, label %221

224:                                              ; preds = %221, %218, %211
  %225 = getelementptr inbounds nuw i8, ptr %214, i64 8
  %226 = load i32, ptr %225, align 8
  %227 = icmp eq i32 %226, 0
  br i1 %227, label %237, label %228

228:                                              ; preds = %224
  %229 = getelementptr inbounds nuw i8, ptr %214, i64 16
  %230 = load ptr, ptr %229, align 16
  %231 = icmp ne ptr %230, null
  %232 = and i1 %195, %231
  br i1 %232, label %233, label %235

233:                                              ; preds = %228
  call void @TVMFFIErrorSetRaised(ptr noundef nonnull %230)
  %234 = load i32, ptr %225, align 8
  br label %235

235:                                              ; preds = %233, %228
  %236 = phi i32 [ %234, %233 ], [ %226, %228 ]
  store ptr null, ptr %229, align 16
  br label %237

237:                                              ; preds = %235, %224
  %238 = phi i32 [ %236, %235 ], [ 0, %224 ]
  %239 = or i32 %238, %213
  %240 = add nuw nsw i64 %212, 1
  %241 = icmp eq i64 %240, %174
  br i1 %241, label %243, label %211

242:                                              ; preds = %164, %50
  store atomic i32 0, ptr %41 release, align 128
  br label %244

243:                                              ; preds = %237
  store atomic i32 0, ptr %41 release, align 128
  br label %246

244:                                              ; preds = %20, %3, %37, %44, %40, %242
  call void @llvm.memcpy.p0.p0.i64(ptr noundef nonnull align 8 dereferenceable(16) %7, ptr noundef nonnull align 8 dereferenceable(16) @__const.launch_shared.alone, i64 16, i1 false)
  %245 = call i32 %1(i32 noundef 0, ptr noundef nonnull %7, ptr noundef %2)
  br label %246

246:                                              ; preds = %243, %244
  %247 = phi i32 [ %245, %244 ], [ %239, %243 ]
  ret i32 %247
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

declare extern_weak void @TVMFFIErrorSetRaised(ptr noundef)

declare i32 @bcmp(ptr, ptr, i64) local_unnamed_addr

declare i32 @llvm.smin.i32(i32, i32)

declare i64 @llvm.smin.i64(i64, i64)

declare i64 @llvm.smax.i64(i64, i64)
